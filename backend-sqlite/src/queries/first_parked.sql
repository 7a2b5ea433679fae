-- The first delivery of a lane that is still parked.
-- Inputs: ?1 handler id, ?2 key.
-- Result: one row, null if there is none.
select min(id) from event_bus_delivery where is_parked and id >> 43 = ?1 and key = ?2
