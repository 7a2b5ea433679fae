-- Tells all workers to look at all free deliveries of these handlers again.
-- Inputs: $1 handler ids.
update event_bus.handler set given_back = given_back + 1 where id = any($1)
