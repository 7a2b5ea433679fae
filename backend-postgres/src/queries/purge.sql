-- Deletes dead letters and lets go of the keys they hold.
-- Guarantees: as replay.sql.
-- Inputs: $1 ids of dead letters, $2 whether those whose marker cannot be found at all are deleted too.
-- Result: the ids of those that were deleted.
with wanted as materialized (
    select d.id, d.handler_id, d.slot, d.key, d.origin_id, d.holds_key
    from event_bus.dead d
    where d.id = any($1)
    for update
),
in_line as (
    delete from event_bus.delivery d
    using wanted w
    where w.holds_key and d.handler_id = w.handler_id and d.slot = w.slot and d.id = w.origin_id and d.is_held
    returning d.id
),
in_park as (
    delete from event_bus.parked d
    using wanted w
    where w.holds_key and d.handler_id = w.handler_id and d.slot = w.slot and d.key = w.key and d.id = w.origin_id
        and d.is_held
    returning d.id
)
delete from event_bus.dead d
using wanted w
where d.id = w.id
    and ($2::bool or not w.holds_key or w.origin_id in (select id from in_line union all select id from in_park))
returning d.id
