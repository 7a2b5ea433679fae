-- The worker's end is accounted for.
delete from event_bus_worker
