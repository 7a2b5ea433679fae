-- Deliveries that wait at the head of their lane without having failed.
-- Inputs: id, due at; the row is repeated. Those that are gone are ignored.
update event_bus_delivery as d
set due_at = v.column2, started = 0
from (values
(?, ?)
) as v
where d.id = v.column1
