-- Deliveries that give up their place while they wait.
-- Guarantees: those that are gone are ignored, so that saying it twice makes no second copy.
-- Inputs: as wait_in_place.sql.
with gone as (
    delete from event_bus.delivery d
    using unnest($1::int4[], $2::int2[], $3::int8[], $4::int8[], $5::int4[], $6::bytea[])
        as v (handler_id, slot, id, delay_ms, failures, errors)
    where d.handler_id = v.handler_id and d.slot = v.slot and d.id = v.id
    returning d.*, v.delay_ms, v.failures as new_failures, v.errors as new_errors
)
insert into event_bus.scheduled
    (due_at, handler_id, slot, event_id, name, version, key, payload, headers, published_at, failures, crashes, errors)
select statement_timestamp() + delay_ms * interval '1 millisecond', handler_id, slot, event_id, name, version, key, payload,
    headers, published_at, coalesce(new_failures, failures), crashes,
    case when new_failures is null then errors else new_errors end
from gone
order by id
