-- Records that deliveries are about to run: if the worker vanishes now, that attempt counts.
-- Inputs: $1 handler ids, $2 slots, $3 ids, $4 attempts.
update event_bus.delivery d
set started = v.attempt
from unnest($1::int4[], $2::int2[], $3::int8[], $4::int4[]) as v (handler_id, slot, id, attempt)
where d.handler_id = v.handler_id and d.slot = v.slot and d.id = v.id
