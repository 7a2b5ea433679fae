-- Deliveries that did not run and will not: no start of theirs is open, and anyone may have the free ones.
-- Inputs: $1 handler ids, $2 slots, $3 ids.
with told as (
    update event_bus.handler set given_back = given_back + 1 where id = any($1) and -1 = any($2)
)
update event_bus.delivery d
set started = 0, owner = null
from unnest($1::int4[], $2::int2[], $3::int8[]) as r (handler_id, slot, id)
where d.handler_id = r.handler_id and d.slot = r.slot and d.id = r.id
