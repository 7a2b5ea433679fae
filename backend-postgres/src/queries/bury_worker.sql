-- Frees what a vanished worker held: its leases, unclean, and its free deliveries, charged with a crash.
-- Guarantees: only under the lock that the worker held as long as it lived, so nothing of it can write any more, save for
--   the transactions of its handlers (complete_in.sql), whose row locks are passed over: the next call finds the rest. The
--   worker is forgotten by the call that finds nothing left.
-- Inputs: $1 the worker.
-- Result: whether it is forgotten, how many free deliveries were charged.
with gate as materialized (
    select pg_try_advisory_xact_lock(('event_bus.worker'::regclass::oid::int8 - 2147483648)::int4, $1) as is_open
),
held as materialized (
    select l.handler_id, l.slot
    from event_bus.lease l
    where l.worker_id = $1 and (select is_open from gate)
    for update skip locked
),
freed as (
    update event_bus.lease l
    set worker_id = null, is_unclean = true, "window" = h."window", loaded_to = h.loaded_to
    from held, event_bus.worker_handler h
    where l.handler_id = held.handler_id and l.slot = held.slot and l.worker_id = $1
        and h.worker_id = $1 and h.handler_id = l.handler_id
),
claimed as materialized (
    select d.handler_id, d.id
    from event_bus.worker_handler h
    cross join lateral (
        select handler_id, id
        from event_bus.delivery
        where handler_id = h.handler_id and slot = -1 and id <= h.loaded_to and owner = $1
        for update skip locked
    ) d
    where h.worker_id = $1 and (select is_open from gate)
),
charged as (
    update event_bus.delivery d
    set owner = null, failures = greatest(d.failures, d.started), crashes = d.crashes + 1, started = 0
    from claimed c
    where d.handler_id = c.handler_id and d.slot = -1 and d.id = c.id and d.owner = $1
    returning d.id
),
told as (
    update event_bus.handler set given_back = given_back + 1
    where id in (select handler_id from event_bus.worker_handler where worker_id = $1) and (select is_open from gate)
),
forgotten as (
    delete from event_bus.worker w
    where w.id = $1 and (select is_open from gate)
        and not exists (select from event_bus.lease l where l.worker_id = $1)
        and not exists (
            select from event_bus.worker_handler h
            join event_bus.delivery d
                on d.handler_id = h.handler_id and d.slot = -1 and d.id <= h.loaded_to and d.owner = $1
            where h.worker_id = $1
        )
    returning w.id
)
select exists (select from forgotten) or not (select is_open from gate), (select count(*) from charged)
