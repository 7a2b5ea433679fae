-- What a claim looks at first.
-- Result: the fence as text, when the next delivery without a place becomes due (null if there is none).
select (select value from event_bus_meta where key = 'fence'), (select min(due_at) from event_bus_scheduled)
