-- Stores the deliveries of one publish call that has an idempotency key, a delay, or partition keys in strict order.
-- Guarantees: all of them or none, and the idempotency key with them: a rival that holds it is waited for, and if it rolls
--   back, this call stores. The ids follow the order of the arrays; see publish.sql for the number. In strict order the
--   locks of all partition keys are taken before the first id is drawn and are held until the transaction has ended, and
--   its rows are visible by then: whoever gets a lock next draws greater ids. They are taken in one order, so that two
--   calls do not wait for each other. Two keys with one hash wait for each other, and that is all.
-- Inputs: the arrays of publish.sql, $10 the idempotency key or null, $11 the delay in milliseconds, $12 whether in strict
--   order.
-- Result: whether it was stored; false if the key was known.
with mine as materialized (select pg_current_xact_id() as number),
numbered as materialized (
    select distinct hashtext(k.key) as number
    from unnest($6::text[]) as k (key)
    where $12::bool and k.key is not null
    order by 1
),
locked as materialized (
    select count(pg_advisory_xact_lock(('event_bus.delivery'::regclass::oid::int8 - 2147483648)::int4, number)) from numbered
),
remembered as (
    insert into event_bus.dedupe (key) select $10::text where $10 is not null
    on conflict do nothing
    returning key
),
wanted as materialized (
    select r.*
    from mine
    cross join locked
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
