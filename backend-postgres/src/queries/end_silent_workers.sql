-- Ends the sessions of workers that have been silent for too long, where the server does not do it by itself (before
-- PostgreSQL 14 it has no idle_session_timeout).
-- Guarantees: longer than their owners trust them, so an owner that lives has stopped by itself before.
-- Inputs: $1 the milliseconds.
select count(pg_terminate_backend(l.pid))
from pg_locks l
join pg_stat_activity a on a.pid = l.pid
where l.locktype = 'advisory' and l.objsubid = 2 and l.granted
    and l.database = (select oid from pg_database where datname = current_database())
    and l.classid = (select (('event_bus.worker'::regclass::oid::int8 - 2147483648) & 4294967295)::oid)
    and l.mode = 'ExclusiveLock'
    and a.state = 'idle' and a.state_change < clock_timestamp() - $1::int8 * interval '1 millisecond'
