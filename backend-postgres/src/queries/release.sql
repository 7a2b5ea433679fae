-- A worker gives leases back: nothing of them runs and all outcomes are stored.
-- Guarantees: a lease that was taken over and has not been waited for yet stays unclean, so that the next taker waits.
-- Inputs: $1 worker, $2 handler ids, $3 slots, $4 whether each is to be waited for still.
update event_bus.lease l
set worker_id = null, is_unclean = r.is_unclean, "window" = h."window", loaded_to = h.loaded_to
from unnest($2::int4[], $3::int2[], $4::bool[]) as r (handler_id, slot, is_unclean), event_bus.worker_handler h
where l.handler_id = r.handler_id and l.slot = r.slot and l.worker_id = $1
    and h.worker_id = $1 and h.handler_id = l.handler_id
