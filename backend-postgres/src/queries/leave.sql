-- A worker ends in peace: all of its leases are free and clean, and so are the free deliveries that it did not run.
-- Guarantees: as release.sql.
-- Inputs: $1 worker, $2 and $3 handler ids and ids of the free deliveries it still holds, $4 and $5 handler ids and slots
--   of the leases that are to be waited for still.
with freed as (
    update event_bus.lease l
    set worker_id = null, is_unclean = exists (
            select from unnest($4::int4[], $5::int2[]) as u (handler_id, slot)
            where u.handler_id = l.handler_id and u.slot = l.slot
        ), "window" = h."window", loaded_to = h.loaded_to
    from event_bus.worker_handler h
    where l.worker_id = $1 and h.worker_id = $1 and h.handler_id = l.handler_id
),
told as (
    update event_bus.handler set given_back = given_back + 1 where id = any($2)
),
given_back as (
    update event_bus.delivery d
    set owner = null, started = 0
    from unnest($2::int4[], $3::int8[]) as g (handler_id, id)
    where d.handler_id = g.handler_id and d.slot = -1 and d.id = g.id and d.owner = $1
)
delete from event_bus.worker where id = $1
