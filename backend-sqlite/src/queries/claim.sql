-- The oldest deliveries of a handler behind the session's cursor.
-- Guarantees: nothing is missed. One writer at a time numbers and commits, so a snapshot that shows a number shows all
--   smaller ones of its handler; what comes back behind the cursor (parked, returned, let go) is asked for by id.
-- Inputs: for each handler the cursor, the end of its range, the most rows; the select is repeated with union all.
-- Result: rows in id order for each handler.
select * from (
    select id, event_id, name, version, key, payload, headers, published_at, failures, crashes, errors, due_at, is_held
    from event_bus_delivery
    where id > ? and id < ? and not is_parked
    order by id
    limit ?
)
