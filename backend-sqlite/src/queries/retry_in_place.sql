-- Deliveries that failed and keep their place at the head of their lane.
-- Guarantees: absolute values, so that saying it twice changes nothing; those that are gone are ignored.
-- Inputs: id, failures, errors, due at; the row is repeated.
update event_bus_delivery as d
set failures = v.column2, errors = v.column3, due_at = v.column4, started = 0
from (values
(?, ?, ?, ?)
) as v
where d.id = v.column1
