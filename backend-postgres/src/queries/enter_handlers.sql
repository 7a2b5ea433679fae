-- What a worker works on, and the leases it may take.
-- Inputs: $1 worker, $2 handler ids, $3 windows, $4 the number of slots.
with noted as (
    insert into event_bus.worker_handler (worker_id, handler_id, "window")
    select $1, h.handler_id, h."window" from unnest($2::int4[], $3::int4[]) as h (handler_id, "window")
)
insert into event_bus.lease (handler_id, slot)
select h.handler_id, s.slot
from unnest($2::int4[]) as h (handler_id)
cross join generate_series(0, $4::int4 - 1) as s (slot)
where not exists (select from event_bus.lease l where l.handler_id = h.handler_id and l.slot = s.slot)
on conflict do nothing
