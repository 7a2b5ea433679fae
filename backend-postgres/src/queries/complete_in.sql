-- Forgets one delivery in the transaction of its handler.
-- Guarantees: the lease, or the claimed row itself, is locked until that transaction ends, so nobody can take it over
--   between this check and the commit.
-- Inputs: $1 handler id, $2 slot, $3 id, $4 worker, $5 epoch.
-- Result: 1 row changed, or 0 if the right to it is gone.
with lease as materialized (
    select 1 from event_bus.lease
    where handler_id = $1 and slot = $2 and worker_id = $4 and epoch = $5
    for share
)
delete from event_bus.delivery d
where d.handler_id = $1 and d.slot = $2 and d.id = $3 and not d.is_held
    and (exists (select from lease) or d.owner = $4)
