-- The id of a handler name.
-- Inputs: ?1 the name.
-- Result: the id, no row if the name was never seen.
select id from event_bus_handler where name = ?1
