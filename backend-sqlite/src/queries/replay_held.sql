-- Dead letters that hold their key come back in their old place, with all attempts before them.
-- Inputs: ?1 a JSON array of ids of dead letters.
-- Result: the ids of the deliveries.
update event_bus_delivery
set is_held = 0, failures = 0, started = 0, errors = null, due_at = null
where is_held and id in (
    select origin_id from event_bus_dead where holds_key and id in (select value from json_each(?1))
)
returning id
