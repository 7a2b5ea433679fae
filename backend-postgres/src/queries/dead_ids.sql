-- The ids of dead letters that match a filter, in the order in which their deliveries were published.
-- Inputs: $1 to $6 as in dead_letters.sql.
select d.id
from event_bus.dead d
left join event_bus.handler h on h.id = d.handler_id
where ($1::int8[] is null or d.id = any($1))
    and ($2::text is null or h.name = $2)
    and ($3::text is null or d.name = $3)
    and ($4::text is null or d.key = $4)
    and ($5::text is null or d.reason = $5)
    and ($6::int8 is null or d.died_at < to_timestamp($6 / 1000.0))
order by d.origin_id, d.id
