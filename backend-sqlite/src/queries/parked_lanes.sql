-- The lanes of a handler that have parked deliveries, in the order of their keys.
-- Guarantees: jumps from key to key in the index, so that the depth of the lanes does not matter.
-- Inputs: ?1 handler id, ?2 the key after which to begin, ?3 the most lanes.
-- Result: key, the first parked id.
with recursive lane (key) as (
    select min(key) from event_bus_delivery where is_parked and id >> 43 = ?1 and key > ?2
    union all
    select (select min(key) from event_bus_delivery where is_parked and id >> 43 = ?1 and key > lane.key)
    from lane
    where lane.key is not null
    limit ?3
)
select key, (select min(id) from event_bus_delivery as d where is_parked and id >> 43 = ?1 and d.key = lane.key)
from lane
where key is not null
