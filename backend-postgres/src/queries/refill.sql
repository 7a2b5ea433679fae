-- Hands out the oldest parked deliveries of lanes.
-- Guarantees: they are no longer parked when they are handed out, so that an unclean end finds them among what was held; and
--   in the same statement the worker's row accounts for them (loaded_to). Accounted for a moment later, those of a session
--   that ends in between would be no part of a line for its successor, who would begin behind them.
-- Inputs: $1 handler ids, $2 slots, $3 keys, $4 limits, $5 the most bytes, $6 the worker.
-- Result: the columns of a delivery, in any order.
with wanted as (
    select * from unnest($1::int4[], $2::int2[], $3::text[], $4::int8[]) with ordinality
        as w (handler_id, slot, key, most, position)
),
picked as materialized (
    select handler_id, slot, key, id
    from (
        select p.*, sum(p.bytes) over (order by w.position, p.id) - p.bytes as bytes_before
        from wanted w
        cross join lateral (
            select p.handler_id, p.slot, p.key, p.id, octet_length(p.payload) as bytes
            from event_bus.parked p
            where p.handler_id = w.handler_id and p.slot = w.slot and p.key = w.key
            order by p.id
            limit w.most
        ) p
    ) p
    where bytes_before < $5::int8
),
accounted as (
    update event_bus.worker_handler h
    set loaded_to = k.id
    from (select handler_id, max(id) as id from picked group by handler_id) k
    where h.worker_id = $6 and h.handler_id = k.handler_id and h.loaded_to < k.id
),
unparked as (
    delete from event_bus.parked p
    using picked k
    where p.handler_id = k.handler_id and p.slot = k.slot and p.key = k.key and p.id = k.id
    returning p.*
)
insert into event_bus.delivery as d
    (handler_id, slot, id, event_id, name, version, key, payload, headers, published_at, failures, crashes, started, due_at,
    errors, is_held)
select handler_id, slot, id, event_id, name, version, key, payload, headers, published_at, failures, crashes, started,
    due_at, errors, is_held
from unparked
returning d.handler_id, d.slot, d.id, d.event_id, d.name, d.version, d.key, d.payload, d.headers, d.published_at,
    d.failures, d.crashes, d.errors, (extract(epoch from d.due_at - statement_timestamp()) * 1000)::int8, d.is_held
