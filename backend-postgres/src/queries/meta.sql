-- What the store says about itself.
-- Result: key, value.
select key, value from event_bus.meta
