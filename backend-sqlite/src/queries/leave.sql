-- Copies deliveries that give up their place to where they wait; the caller then forgets the originals.
-- Guarantees: those that are gone are ignored, so that saying it twice makes no second copy.
-- Inputs: id, due at, failures (null: as they were), errors (null: as they were); the row is repeated.
insert into event_bus_scheduled
    (due_at, handler_id, event_id, name, version, key, payload, headers, published_at, failures, crashes, errors)
select v.column2, d.id >> 43, d.event_id, d.name, d.version, d.key, d.payload, d.headers, d.published_at,
    coalesce(v.column3, d.failures), d.crashes, coalesce(v.column4, d.errors)
from (values
(?, ?, ?, ?)
) as v
cross join event_bus_delivery as d on d.id = v.column1
