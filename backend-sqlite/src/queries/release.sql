-- Deliveries that did not run and will not: no start of theirs is open.
-- Inputs: ?1 a JSON array of ids.
update event_bus_delivery
set started = 0
where id in (select value from json_each(?1)) and started <> 0
