-- The ids of dead letters that match a filter, in the order in which their deliveries were published.
-- Inputs: ?1 handler name, ?2 event name, ?3 key, ?4 reason, ?5 dead before (each null: any).
select d.id
from event_bus_dead as d
left join event_bus_handler as h on h.id = d.handler_id
where (?1 is null or h.name = ?1)
    and (?2 is null or d.name = ?2)
    and (?3 is null or d.key = ?3)
    and (?4 is null or d.reason = ?4)
    and (?5 is null or d.died_at < ?5)
order by d.origin_id, d.id
