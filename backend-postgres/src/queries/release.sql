-- A worker gives leases back: nothing of them runs and all outcomes are stored.
-- Inputs: $1 worker, $2 handler ids, $3 slots.
update event_bus.lease l
set worker_id = null, is_unclean = false, "window" = h."window", loaded_to = h.loaded_to
from unnest($2::int4[], $3::int2[]) as r (handler_id, slot), event_bus.worker_handler h
where l.handler_id = r.handler_id and l.slot = r.slot and l.worker_id = $1
    and h.worker_id = $1 and h.handler_id = l.handler_id
