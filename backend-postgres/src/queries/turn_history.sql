-- Leases are given out under this history from now on.
-- Guarantees: epochs, which may have gone back with the history, are beyond all that were ever given out: no lease changes
--   hands so often between two copies. That happens once, however many workers say it.
-- Inputs: $1 the history.
with turned as (
    insert into event_bus.meta as m (key, value) values ('history', $1)
    on conflict (key) do update set value = excluded.value where m.value <> excluded.value
    returning m.key
)
update event_bus.lease set epoch = epoch + 1000000000
where exists (select from turned) and exists (select from event_bus.meta where key = 'history')
