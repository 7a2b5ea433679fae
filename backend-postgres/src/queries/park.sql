-- Gives deliveries of stuck lanes back: claims do not see them, refills find them.
-- Guarantees: those that are gone are ignored.
-- Inputs: $1 handler ids, $2 slots, $3 ids.
with gone as (
    delete from event_bus.delivery d
    using unnest($1::int4[], $2::int2[], $3::int8[]) as p (handler_id, slot, id)
    where d.handler_id = p.handler_id and d.slot = p.slot and d.id = p.id and d.key is not null
    returning d.*
)
insert into event_bus.parked
    (handler_id, slot, key, id, event_id, name, version, payload, headers, published_at, failures, crashes, started, due_at,
    errors, is_held)
select handler_id, slot, key, id, event_id, name, version, payload, headers, published_at, failures, crashes, started,
    due_at, errors, is_held
from gone
