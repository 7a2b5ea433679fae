-- Forgets dead letters.
-- Inputs: ?1 a JSON array of ids.
delete from event_bus_dead where id in (select value from json_each(?1))
