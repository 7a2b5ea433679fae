-- When the next delivery without a place becomes due.
-- Result: milliseconds from now, less than 1 if it is; no row if there is none.
select (extract(epoch from due_at - statement_timestamp()) * 1000)::int8 from event_bus.scheduled order by due_at limit 1
