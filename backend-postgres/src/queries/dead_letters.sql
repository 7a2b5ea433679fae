-- Dead letters that match a filter, in id order.
-- Inputs: $1 ids, $2 handler name, $3 event name, $4 key, $5 reason, $6 dead before, in milliseconds since 1970 (each null:
--   any), $7 after this id, $8 the most rows.
-- Result: id, handler name, event id, name, version, key, payload, headers, published at, failures, errors, reason, died at
--   in milliseconds since 1970, holds key.
select d.id, h.name, d.event_id, d.name, d.version, d.key, d.payload, d.headers, d.published_at, d.failures, d.errors,
    d.reason, (extract(epoch from d.died_at) * 1000)::int8, d.holds_key
from event_bus.dead d
left join event_bus.handler h on h.id = d.handler_id
where d.id > $7
    and ($1::int8[] is null or d.id = any($1))
    and ($2::text is null or h.name = $2)
    and ($3::text is null or d.name = $3)
    and ($4::text is null or d.key = $4)
    and ($5::text is null or d.reason = $5)
    and ($6::int8 is null or d.died_at < to_timestamp($6 / 1000.0))
order by d.id
limit $8
