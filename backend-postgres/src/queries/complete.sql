-- Forgets deliveries that are done.
-- Guarantees: those that are gone are ignored.
-- Inputs: $1 handler ids, $2 slots, $3 ids.
delete from event_bus.delivery d
using unnest($1::int4[], $2::int2[], $3::int8[]) as g (handler_id, slot, id)
where d.handler_id = g.handler_id and d.slot = g.slot and d.id = g.id
