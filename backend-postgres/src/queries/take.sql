-- Takes free leases, and accounts for what their last owners may have left.
-- Guarantees: each lease goes to one taker (its row is locked, and looked at again under the lock). After an unclean end
--   every delivery that may have been in the vanished owner's memory is charged a crash, and the attempt as failed if its
--   start was recorded: it held at most "window" deliveries of the handler, none beyond loaded_to, and everything of the
--   slot before them was settled. Charging a few more costs one recorded start each. And in every case the lanes with
--   parked deliveries are parked from their very first delivery on.
-- Inputs: $1 worker, $2 handler ids, $3 how many leases of each.
-- Result: handler id, slot, epoch, whether the end was unclean, whether something of it is parked.
with wanted as (
    select * from unnest($2::int4[], $3::int8[]) as w (handler_id, most)
),
found as materialized (
    select l.*
    from wanted w
    cross join lateral (
        select handler_id, slot, is_unclean, "window", loaded_to
        from event_bus.lease
        where handler_id = w.handler_id and worker_id is null
        order by slot
        limit w.most
        for update skip locked
    ) l
),
taken as (
    update event_bus.lease l
    set worker_id = $1, epoch = l.epoch + 1, is_unclean = false
    from found f
    where l.handler_id = f.handler_id and l.slot = f.slot and l.worker_id is null
    returning l.handler_id, l.slot, l.epoch, f.is_unclean, f."window", f.loaded_to,
        exists (select from event_bus.parked p where p.handler_id = l.handler_id and p.slot = l.slot) as has_parked
),
suspect as materialized (
    select t.handler_id, t.slot, t.is_unclean, h.id, h.is_held,
        t.has_parked and exists (
            select from event_bus.parked p
            where p.handler_id = t.handler_id and p.slot = t.slot and p.key = h.key and p.id > h.id
        ) as lines_up
    from taken t
    cross join lateral (
        select d.id, d.key, d.is_held
        from event_bus.delivery d
        where d.handler_id = t.handler_id and d.slot = t.slot and d.id <= t.loaded_to
        order by d.id
        limit t."window"
    ) h
    where t.is_unclean or t.has_parked
),
moved as (
    delete from event_bus.delivery d
    using suspect s
    where s.lines_up and d.handler_id = s.handler_id and d.slot = s.slot and d.id = s.id
    returning d.*, s.is_unclean and not d.is_held as is_charged
),
lined_up as (
    insert into event_bus.parked
        (handler_id, slot, key, id, event_id, name, version, payload, headers, published_at, failures, crashes, started,
        due_at, errors, is_held)
    select handler_id, slot, key, id, event_id, name, version, payload, headers, published_at,
        case when is_charged and started > failures then started else failures end,
        crashes + is_charged::int4,
        case when is_charged then 0 else started end,
        due_at, errors, is_held
    from moved
),
charged as (
    update event_bus.delivery d
    set failures = greatest(d.failures, d.started), crashes = d.crashes + 1, started = 0
    from suspect s
    where s.is_unclean and not s.lines_up and not s.is_held
        and d.handler_id = s.handler_id and d.slot = s.slot and d.id = s.id
)
select handler_id, slot, epoch, is_unclean, has_parked from taken
