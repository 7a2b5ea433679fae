-- Gives scheduled deliveries that are due their place at the end of their lines, in the order in which they became due.
-- Guarantees: the three statements see the same rows, for they share the write lock; a row is scheduled or in its line,
--   never both nor neither.
-- Inputs: ?1 now, ?2 the most rows.
insert into event_bus_delivery
    (id, event_id, name, version, key, payload, headers, published_at, failures, crashes, errors)
select
    (s.handler_id << 43) + h.last_seq + row_number() over (partition by s.handler_id order by s.due_at, s.id),
    s.event_id, s.name, s.version, s.key, s.payload, s.headers, s.published_at, s.failures, s.crashes, s.errors
from (select * from event_bus_scheduled where due_at <= ?1 order by due_at, id limit ?2) as s
cross join event_bus_handler as h on h.id = s.handler_id;

update event_bus_handler as h
set last_seq = h.last_seq + s.promoted
from (
    select handler_id, count(*) as promoted
    from (select handler_id from event_bus_scheduled where due_at <= ?1 order by due_at, id limit ?2)
    group by handler_id
) as s
where h.id = s.handler_id;

delete from event_bus_scheduled
where id in (select id from event_bus_scheduled where due_at <= ?1 order by due_at, id limit ?2)
