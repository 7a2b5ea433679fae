-- How many deliveries there are, for each handler that was ever seen. Reads every row: for people, not for loops.
-- Result: handler name, ready, waiting, dead.
with line as (
    select handler_id, due_at > statement_timestamp() as is_waiting from event_bus.delivery where not is_held
    union all
    select handler_id, due_at > statement_timestamp() from event_bus.parked where not is_held
    union all
    select handler_id, true from event_bus.scheduled
),
counted as (
    select handler_id, count(*) filter (where is_waiting is not true) as ready, count(*) filter (where is_waiting) as waiting
    from line
    group by handler_id
),
buried as (
    select handler_id, count(*) as dead from event_bus.dead group by handler_id
)
select h.name, coalesce(c.ready, 0), coalesce(c.waiting, 0), coalesce(b.dead, 0)
from event_bus.handler h
left join counted c on c.handler_id = h.id
left join buried b on b.handler_id = h.id
order by h.name
