-- Claims the oldest free deliveries of handlers that nobody holds.
-- Guarantees: each goes to one worker. What others are claiming at this moment is passed over. Nothing is claimed that the
--   worker's row does not account for (loaded_to), so a vanished worker's claims are found without an index on the owner:
--   such an index costs a quarter of the speed. The commit does not wait for the disk: a claim that a crash of the server
--   takes back was made by a session that is gone as well.
-- Inputs: $1 worker, $2 handler ids, $3 limits, $4 the most bytes, $5 how far ahead to account for ids,
--   $6 ids up to which nothing can be new.
-- Result: the columns of a delivery.
with hurry as materialized (select set_config('synchronous_commit', 'off', true)),
wanted as (
    select * from unnest($2::int4[], $3::int8[], $6::int8[]) with ordinality as w (handler_id, most, floor, position)
),
found as materialized (
    select w.position, d.handler_id, d.id, d.bytes
    from wanted w
    cross join hurry
    cross join lateral (
        select handler_id, id, octet_length(payload) as bytes
        from event_bus.delivery
        where handler_id = w.handler_id and slot = -1 and id > w.floor and owner is null
        order by id
        limit w.most
        for update skip locked
    ) d
),
picked as materialized (
    select handler_id, id
    from (
        select handler_id, id, sum(bytes) over (order by position, id) - bytes as bytes_before from found
    ) f
    where bytes_before < $4::int8
),
noted as (
    update event_bus.worker_handler h
    set loaded_to = p.top + $5::int8
    from (select handler_id, max(id) as top from picked group by handler_id) p
    where h.worker_id = $1 and h.handler_id = p.handler_id and h.loaded_to < p.top
)
update event_bus.delivery d
set owner = $1
from picked p
where d.handler_id = p.handler_id and d.slot = -1 and d.id = p.id
returning d.handler_id, d.slot, d.id, d.event_id, d.name, d.version, d.key, d.payload, d.headers, d.published_at,
    d.failures, d.crashes, d.errors, null::int8, d.is_held
