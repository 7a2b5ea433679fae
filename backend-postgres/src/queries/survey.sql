-- Who works, who has vanished, and what is free. Also the beat of a worker: its answer proves that the session lives.
-- Guarantees: reads only. A worker whose lock can be had is gone, and stays gone: its row is written under the lock. The
--   shared lock lets others look at the same time.
-- Inputs: $1 this worker, $2 its handlers.
-- Result: for each worker its id, whether it is gone, its handlers; then for each handler with free leases (worker null)
--   how many.
select w.id as worker,
    w.id <> $1 and pg_try_advisory_xact_lock_shared(('event_bus.worker'::regclass::oid::int8 - 2147483648)::int4, w.id)
        as is_gone,
    array(select h.handler_id from event_bus.worker_handler h where h.worker_id = w.id) as handlers,
    0::int8 as free
from event_bus.worker w
union all
select null, false, array[l.handler_id], count(*)
from event_bus.lease l
where l.handler_id = any($2) and l.worker_id is null
group by l.handler_id
