-- Remembers an idempotency key.
-- Guarantees: the key is stored with the deliveries it guards or not at all, for it shares their transaction.
-- Inputs: ?1 the key, ?2 now, ?3 the time before which keys are forgotten.
-- Result: 1 row changed if the key was not known, or forgotten; 0 if it is known.
insert into event_bus_dedupe (key, published_at) values (?1, ?2)
on conflict (key) do update set published_at = excluded.published_at where published_at < ?3
