-- The first parked delivery of lanes.
-- Inputs: $1 handler ids, $2 slots, $3 keys.
-- Result: the position of the lane (from 1), the id; no row for a lane with nothing parked.
select w.position, p.id
from unnest($1::int4[], $2::int2[], $3::text[]) with ordinality as w (handler_id, slot, key, position)
cross join lateral (
    select id from event_bus.parked p
    where p.handler_id = w.handler_id and p.slot = w.slot and p.key = w.key
    order by p.id
    limit 1
) p
