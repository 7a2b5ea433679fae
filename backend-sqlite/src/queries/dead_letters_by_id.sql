-- As dead_letters.sql, of these ids only.
-- Inputs: as there, and ?8 a JSON array of ids.
select d.id, h.name, d.event_id, d.name, d.version, d.key, d.payload, d.headers, d.published_at, d.failures, d.errors,
    d.reason, d.died_at, d.holds_key
from event_bus_dead as d
left join event_bus_handler as h on h.id = d.handler_id
where d.id in (select value from json_each(?8))
    and d.id > ?6
    and (?1 is null or h.name = ?1)
    and (?2 is null or d.name = ?2)
    and (?3 is null or d.key = ?3)
    and (?4 is null or d.reason = ?4)
    and (?5 is null or d.died_at < ?5)
order by d.id
limit ?7
