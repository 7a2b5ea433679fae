-- Dead letters that match a filter, in id order.
-- Inputs: ?1 handler name, ?2 event name, ?3 key, ?4 reason, ?5 dead before (each null: any), ?6 after this id,
--   ?7 the most rows.
-- Result: id, handler name, event id, name, version, key, payload, headers, published at, failures, errors, reason,
--   died at, holds key.
select d.id, h.name, d.event_id, d.name, d.version, d.key, d.payload, d.headers, d.published_at, d.failures, d.errors,
    d.reason, d.died_at, d.holds_key
from event_bus_dead as d
left join event_bus_handler as h on h.id = d.handler_id
where d.id > ?6
    and (?1 is null or h.name = ?1)
    and (?2 is null or d.name = ?2)
    and (?3 is null or d.key = ?3)
    and (?4 is null or d.reason = ?4)
    and (?5 is null or d.died_at < ?5)
order by d.id
limit ?7
