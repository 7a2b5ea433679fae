-- A worker begins.
-- Guarantees: whoever sees the row finds the lock held, for as long as this session lives.
-- Inputs: $1 incarnation, $2 a few words for people.
-- Result: the worker's id, whether the lock was taken.
with entered as (
    insert into event_bus.worker (incarnation, info) values ($1, $2) returning id
)
select id, pg_try_advisory_lock(('event_bus.worker'::regclass::oid::int8 - 2147483648)::int4, id)
from entered
