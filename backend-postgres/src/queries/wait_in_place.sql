-- Deliveries that keep their place at the head of their lane while they wait.
-- Guarantees: absolute values, so that saying it twice changes nothing; those that are gone are ignored.
-- Inputs: $1 handler ids, $2 slots, $3 ids, $4 delays in milliseconds, $5 failures (null: as they were), $6 errors
--   (as failures).
update event_bus.delivery d
set due_at = statement_timestamp() + v.delay_ms * interval '1 millisecond', started = 0,
    failures = coalesce(v.failures, d.failures),
    errors = case when v.failures is null then d.errors else v.errors end
from unnest($1::int4[], $2::int2[], $3::int8[], $4::int8[], $5::int4[], $6::bytea[])
    as v (handler_id, slot, id, delay_ms, failures, errors)
where d.handler_id = v.handler_id and d.slot = v.slot and d.id = v.id
