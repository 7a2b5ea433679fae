-- Stores the deliveries of one publish call that has an idempotency key, a delay, or both.
-- Guarantees: all of them or none, and the key with them: a rival that holds the key is waited for, and if it rolls back,
--   this call stores. The ids follow the order of the arrays; see publish.sql for the number.
-- Inputs: the arrays of publish.sql, $10 the idempotency key or null, $11 the delay in milliseconds.
-- Result: whether it was stored; false if the key was known.
with mine as materialized (select pg_current_xact_id() as number),
remembered as (
    insert into event_bus.dedupe (key) select $10::text where $10 is not null
    on conflict do nothing
    returning key
),
wanted as materialized (
    select r.*
    from mine
    cross join unnest($1::int4[], $2::int2[], $3::uuid[], $4::text[], $5::int4[], $6::text[], $7::bytea[], $8::text[], $9::int8[])
        with ordinality as r (handler_id, slot, event_id, name, version, key, payload, headers, published_at, position)
    where $10 is null or exists (select from remembered)
),
ready as (
    insert into event_bus.delivery (handler_id, slot, event_id, name, version, key, payload, headers, published_at)
    select handler_id, slot, event_id, name, version, key, payload, headers, published_at
    from wanted
    where $11::int8 = 0
    order by position
),
later as (
    insert into event_bus.scheduled
        (due_at, handler_id, slot, event_id, name, version, key, payload, headers, published_at)
    select statement_timestamp() + $11 * interval '1 millisecond', handler_id, slot, event_id, name, version, key, payload,
        headers, published_at
    from wanted
    where $11 > 0
    order by position
)
select $10 is null or exists (select from remembered)
