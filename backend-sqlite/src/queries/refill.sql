-- Hands out the oldest parked deliveries of a lane.
-- Guarantees: they are no longer parked when they are handed out, so that an unclean end finds them among what was held.
-- Inputs: ?1 handler id, ?2 key, ?3 the most rows, ?4 the bytes of payload after which no further row is taken.
-- Result: the columns of claim.sql, in any order.
update event_bus_delivery
set is_parked = 0
where id in (
    select id from (
        select id, sum(length(payload)) over (order by id) - length(payload) as bytes_before
        from (
            select id, payload from event_bus_delivery
            where is_parked and id >> 43 = ?1 and key = ?2
            order by id
            limit ?3
        )
    )
    where bytes_before < ?4
)
returning id, event_id, name, version, key, payload, headers, published_at, failures, crashes, errors, due_at, is_held
