-- Dead letters that are about to be purged let go of their keys.
-- Inputs: ?1 a JSON array of ids of dead letters.
delete from event_bus_delivery
where is_held and id in (
    select origin_id from event_bus_dead where holds_key and id in (select value from json_each(?1))
)
