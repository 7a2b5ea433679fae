-- Leaves deliveries as markers that hold their keys.
-- Inputs: ?1 a JSON array of ids.
update event_bus_delivery
set is_held = 1, started = 0, due_at = null
where id in (select value from json_each(?1))
