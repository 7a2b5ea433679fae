-- Stores the deliveries of many publish calls.
-- Guarantees: all of them or none. The ids follow the order of the arrays. The transaction has its number before the first
--   id is drawn, so whoever sees that a transaction has not begun knows that its ids will be greater than those in sight:
--   the claim's floor rests on this.
-- Inputs: arrays of handler id, slot, event id, name, version, key, payload, headers, published at.
-- Measured: 27 thousand a second with 16 publishers that share statements, 237 thousand with 256.
with mine as materialized (select pg_current_xact_id() as number)
insert into event_bus.delivery (handler_id, slot, event_id, name, version, key, payload, headers, published_at)
select r.handler_id, r.slot, r.event_id, r.name, r.version, r.key, r.payload, r.headers, r.published_at
from mine
cross join unnest($1::int4[], $2::int2[], $3::uuid[], $4::text[], $5::int4[], $6::text[], $7::bytea[], $8::text[], $9::int8[])
    with ordinality as r (handler_id, slot, event_id, name, version, key, payload, headers, published_at, position)
order by r.position
