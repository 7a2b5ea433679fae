-- The oldest deliveries of slots that this worker owns, without those that it holds. Reads only: the lease is the claim.
-- Guarantees: within a slot nothing is passed over, however late a publisher committed a small id: what is held is told
--   apart by id, not by a cursor.
-- Inputs: $1 handler ids, $2 slots, $3 limits, $4 the ids that are held, $5 the most bytes, $6 ids up to which nothing can
--   be new (see keeper.rs): with a transaction that stays open, dead rows lie there that cannot be removed.
-- Result: the columns of a delivery, each slot in the order of its ids.
-- Measured: NOT EXISTS over earlier ids and locks in the WHERE clause are unsound, and slow with few keys.
select handler_id, slot, id, event_id, name, version, key, payload, headers, published_at, failures, crashes, errors,
    due_in, is_held
from (
    select w.position, d.*,
        sum(octet_length(d.payload)) over (order by w.position, d.id) - octet_length(d.payload) as bytes_before
    from unnest($1::int4[], $2::int2[], $3::int8[], $6::int8[]) with ordinality as w (handler_id, slot, most, floor, position)
    cross join lateral (
        select d.handler_id, d.slot, d.id, d.event_id, d.name, d.version, d.key, d.payload, d.headers, d.published_at,
            d.failures, d.crashes, d.errors,
            (extract(epoch from d.due_at - statement_timestamp()) * 1000)::int8 as due_in, d.is_held
        from event_bus.delivery d
        where d.handler_id = w.handler_id and d.slot = w.slot and d.id > w.floor and d.id <> all ($4::int8[])
        order by d.id
        limit w.most
    ) d
) d
where bytes_before < $5::int8
order by position, id
