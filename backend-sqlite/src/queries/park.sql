-- Gives deliveries of stuck lanes back: claims pass over them, refills find them.
-- Guarantees: by id only. A scan for the rest of the lane would read the whole backlog of the handler while everybody
--   waits; what lies behind the cursor is parked when it is claimed.
-- Inputs: ?1 a JSON array of ids. Those that are gone are ignored.
update event_bus_delivery
set is_parked = 1
where id in (select value from json_each(?1)) and not is_parked
