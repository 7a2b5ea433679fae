-- Gives deliveries that are due their place at the end of their lines, in the order in which they became due.
-- Guarantees: a row is scheduled or in its line, never both nor neither. One promoter at a time, so that two of them do not
--   interleave their ids.
-- Inputs: $1 the most rows.
with gate as materialized (
    select pg_try_advisory_xact_lock(('event_bus.scheduled'::regclass::oid::int8 - 2147483648)::int4, 0) as is_open
),
mine as materialized (select pg_current_xact_id() as number from gate where is_open),
due as materialized (
    select s.due_at, s.id
    from mine
    cross join lateral (
        select due_at, id from event_bus.scheduled
        where due_at <= statement_timestamp()
        order by due_at, id
        limit $1
        for update skip locked
    ) s
),
taken as (
    delete from event_bus.scheduled s
    using due d
    where s.due_at = d.due_at and s.id = d.id
    returning s.*
)
insert into event_bus.delivery
    (handler_id, slot, event_id, name, version, key, payload, headers, published_at, failures, crashes, errors)
select handler_id, slot, event_id, name, version, key, payload, headers, published_at, failures, crashes, errors
from taken
order by due_at, id
