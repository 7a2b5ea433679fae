-- Deliveries become dead letters; those that hold their keys stay as markers besides.
-- Guarantees: those that are gone or held are ignored, so that saying it twice makes no second dead letter.
-- Inputs: $1 handler ids, $2 slots, $3 ids, $4 reasons, $5 failures, $6 errors, $7 whether they hold their keys.
with verdict as materialized (
    select * from unnest($1::int4[], $2::int2[], $3::int8[], $4::text[], $5::int4[], $6::bytea[], $7::bool[])
        as v (handler_id, slot, id, reason, failures, errors, holds_key)
),
gone as (
    delete from event_bus.delivery d
    using verdict v
    where d.handler_id = v.handler_id and d.slot = v.slot and d.id = v.id and not v.holds_key and not d.is_held
    returning d.*, v.reason, v.failures as all_failures, v.errors as all_errors, v.holds_key
),
kept as (
    update event_bus.delivery d
    set is_held = true, started = 0, due_at = null
    from verdict v
    where d.handler_id = v.handler_id and d.slot = v.slot and d.id = v.id and v.holds_key and not d.is_held
    returning d.*, v.reason, v.failures as all_failures, v.errors as all_errors, v.holds_key
)
insert into event_bus.dead
    (handler_id, slot, origin_id, event_id, name, version, key, payload, headers, published_at, crashes, reason, failures,
    errors, holds_key)
select handler_id, slot, id, event_id, name, version, key, payload, headers, published_at, crashes, reason, all_failures,
    all_errors, holds_key
from (select * from gone union all select * from kept) d
order by id
