-- When the next delivery without a place becomes due.
-- Result: one row, null if there is none.
select min(due_at) from event_bus_scheduled
