-- Dead letters become deliveries again, with all attempts before them: those that hold their key in their old place, the
-- others at the end of their lines in the order in which they were published.
-- Guarantees: each is dead or a delivery, never both nor neither. One whose marker is on its way between its line and the
--   parked ones at this moment is left as it is: ask again.
-- Inputs: $1 ids of dead letters, $2 whether those whose marker cannot be found at all go to the end of their lines.
-- Result: the ids of those that were replayed.
with mine as materialized (select pg_current_xact_id() as number),
wanted as materialized (
    select d.* from event_bus.dead d where d.id = any($1) for update
),
in_line as (
    update event_bus.delivery d
    set is_held = false, failures = 0, started = 0, errors = null, due_at = null
    from wanted w
    where w.holds_key and d.handler_id = w.handler_id and d.slot = w.slot and d.id = w.origin_id and d.is_held
    returning d.id
),
in_park as (
    update event_bus.parked d
    set is_held = false, failures = 0, started = 0, errors = null, due_at = null
    from wanted w
    where w.holds_key and d.handler_id = w.handler_id and d.slot = w.slot and d.key = w.key and d.id = w.origin_id
        and d.is_held
    returning d.id
),
gone as (
    delete from event_bus.dead d
    using wanted w
    where d.id = w.id
        and ($2::bool or not w.holds_key or w.origin_id in (select id from in_line union all select id from in_park))
    returning d.*
),
back as (
    insert into event_bus.delivery
        (handler_id, slot, event_id, name, version, key, payload, headers, published_at, crashes)
    select g.handler_id, g.slot, g.event_id, g.name, g.version, g.key, g.payload, g.headers, g.published_at, g.crashes
    from mine
    cross join gone g
    where not g.holds_key or g.origin_id not in (select id from in_line union all select id from in_park)
    order by g.origin_id, g.id
)
select id from gone
