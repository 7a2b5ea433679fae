-- Who works, who has vanished, what is free and what came back. Also the beat of a worker: its answer proves that the
-- session lives.
-- Guarantees: reads only. A worker whose lock can be had is gone, and stays gone: its row is written under the lock. The
--   shared lock lets others look at the same time.
-- Inputs: $1 this worker, $2 its handlers.
-- Result: what it is about (0 worker, 1 handler), its id, whether the worker is gone, the worker's handlers, the handler's
--   free leases, how often something of it came back; then, everywhere the same, the first transaction that had not ended
--   and the first that had not begun.
select 0 as kind, w.id,
    w.id <> $1 and pg_try_advisory_xact_lock_shared(('event_bus.worker'::regclass::oid::int8 - 2147483648)::int4, w.id)
        as is_gone,
    array(select h.handler_id from event_bus.worker_handler h where h.worker_id = w.id) as handlers,
    0::int8 as free, 0::int8 as given_back,
    pg_snapshot_xmin(pg_current_snapshot())::text::int8 as oldest, pg_snapshot_xmax(pg_current_snapshot())::text::int8 as next
from event_bus.worker w
union all
select 1, h.id, false, null,
    (select count(*) from event_bus.lease l where l.handler_id = h.id and l.worker_id is null), h.given_back,
    pg_snapshot_xmin(pg_current_snapshot())::text::int8, pg_snapshot_xmax(pg_current_snapshot())::text::int8
from event_bus.handler h
where h.id = any($2)
