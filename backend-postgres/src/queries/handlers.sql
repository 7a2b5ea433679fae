-- The ids of handler names that are known.
-- Inputs: $1 names.
-- Result: name, id.
select name, id from event_bus.handler where name = any($1)
