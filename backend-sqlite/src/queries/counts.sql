-- How many deliveries there are, for each handler that was ever seen. Reads every row: for people, not for loops.
-- Inputs: ?1 now.
-- Result: handler name, ready, waiting, dead.
select h.name,
    (select count(*) from event_bus_delivery as d
        where d.id >= h.id << 43 and d.id < (h.id + 1) << 43 and not d.is_held and coalesce(d.due_at, 0) <= ?1),
    (select count(*) from event_bus_delivery as d
        where d.id >= h.id << 43 and d.id < (h.id + 1) << 43 and not d.is_held and d.due_at > ?1)
        + (select count(*) from event_bus_scheduled as s where s.handler_id = h.id),
    (select count(*) from event_bus_dead as x where x.handler_id = h.id)
from event_bus_handler as h
order by h.name
