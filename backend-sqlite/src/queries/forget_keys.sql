-- Forgets old idempotency keys, a bounded number at a time.
-- Inputs: ?1 the time before which keys are forgotten.
delete from event_bus_dedupe
where key in (select key from event_bus_dedupe where published_at < ?1 limit 1000)
