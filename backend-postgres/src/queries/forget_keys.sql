-- Forgets old idempotency keys, a bounded number at a time.
-- Inputs: $1 the age in milliseconds from which on keys are forgotten, $2 the most rows.
delete from event_bus.dedupe
where key = any (array(
    select key from event_bus.dedupe
    where published_at < statement_timestamp() - $1::int8 * interval '1 millisecond'
    order by published_at
    limit $2
    for update skip locked
))
