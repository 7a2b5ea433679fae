-- When a worker ends: parks what it held of lanes that have parked deliveries behind it (a head that waits, what was taken
--   back from a parked line).
-- Guarantees: the next worker, which asks for parked lanes by key, gets each of them from its very first delivery on.
--   Unparked deliveries that stand before a parked one were in the vanished worker's memory: a delivery is parked only
--   after it was claimed, and everything claimed lies before the cursor. So they are among the first `window` unparked
--   ones, by the argument of charge.sql. With nothing parked this costs a look into an empty index for each of them.
-- Inputs: ?1 the first id of the handler's range, ?2 the end of it, ?3 the window, ?4 the handler.
update event_bus_delivery
set is_parked = 1
where id in (
    select held.id
    from (
        select id, key from event_bus_delivery where id >= ?1 and id < ?2 and not is_parked order by id limit ?3
    ) held
    where held.key is not null
    and exists (
        select 1 from event_bus_delivery parked
        where parked.is_parked and parked.id >> 43 = ?4 and parked.key = held.key and parked.id > held.id
    )
)
