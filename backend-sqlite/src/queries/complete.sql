-- Forgets deliveries that are done.
-- Inputs: ?1 a JSON array of ids. Those that are gone are ignored.
delete from event_bus_delivery
where id in (select value from json_each(?1))
