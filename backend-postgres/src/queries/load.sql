-- A worker is about to hold deliveries with ids up to these.
-- Inputs: $1 worker, $2 handler ids, $3 ids.
with hurry as materialized (select set_config('synchronous_commit', 'off', true))
update event_bus.worker_handler h
set loaded_to = l.id
from hurry, unnest($2::int4[], $3::int8[]) as l (handler_id, id)
where h.worker_id = $1 and h.handler_id = l.handler_id and h.loaded_to < l.id
