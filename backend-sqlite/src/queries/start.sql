-- Records that deliveries are about to run: if the worker vanishes now, that attempt counts.
-- Inputs: id, attempt; the row is repeated.
update event_bus_delivery as d
set started = v.column2
from (values
(?, ?)
) as v
where d.id = v.column1
