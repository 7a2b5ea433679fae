-- Copies deliveries to the dead letters; the caller then forgets the originals, or holds them.
-- Guarantees: those that are gone or held are ignored, so that saying it twice makes no second dead letter.
-- Inputs: id, reason, failures, errors, died at, holds key; the row is repeated.
insert into event_bus_dead
    (handler_id, origin_id, event_id, name, version, key, payload, headers, published_at, crashes,
    reason, failures, errors, died_at, holds_key)
select d.id >> 43, d.id, d.event_id, d.name, d.version, d.key, d.payload, d.headers, d.published_at, d.crashes,
    v.column2, v.column3, v.column4, v.column5, v.column6
from (values
(?, ?, ?, ?, ?, ?)
) as v
cross join event_bus_delivery as d on d.id = v.column1
where not d.is_held
