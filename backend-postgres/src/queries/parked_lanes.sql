-- The lanes of a slot that have parked deliveries, in the order of their keys.
-- Guarantees: jumps from key to key in the index, so that the depth of the lanes does not matter.
-- Inputs: $1 handler id, $2 slot, $3 the key after which to begin, $4 the most lanes.
-- Result: key, the first parked id.
with recursive lane as (
    (
        select key, id from event_bus.parked
        where handler_id = $1 and slot = $2 and key > $3
        order by key, id
        limit 1
    )
    union all
    select next.key, next.id
    from lane
    cross join lateral (
        select p.key, p.id from event_bus.parked p
        where p.handler_id = $1 and p.slot = $2 and p.key > lane.key
        order by p.key, p.id
        limit 1
    ) next
)
select key, id from lane limit $4
