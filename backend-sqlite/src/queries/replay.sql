-- Dead letters become deliveries at the end of their lines, with all attempts before them.
-- Inputs: id of the dead letter, id of the delivery; the row is repeated.
insert into event_bus_delivery
    (id, event_id, name, version, key, payload, headers, published_at, crashes)
select v.column2, d.event_id, d.name, d.version, d.key, d.payload, d.headers, d.published_at, d.crashes
from (values
(?, ?)
) as v
cross join event_bus_dead as d on d.id = v.column1
