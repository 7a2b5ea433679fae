-- After an unclean end: counts a crash for what the vanished worker may have been running, and the attempt as failed if
-- its start was recorded.
-- Guarantees: nothing the worker held is missed. It held at most `window` deliveries of the handler at once; all of them
--   are unparked and lie at or before its cursor, and every other unparked row at or before the cursor was settled, which
--   removed or parked it. So the rows it held are the first unparked ones by id, and there are at most `window` of them.
--   Counting a crash for a few rows behind them costs one recorded start each, nothing else.
-- Inputs: ?1 the first id of the handler's range, ?2 the end of it, ?3 the window.
update event_bus_delivery
set failures = case when started > failures then started else failures end,
    crashes = crashes + 1,
    started = 0
where id in (
    select id from event_bus_delivery where id >= ?1 and id < ?2 and not is_parked order by id limit ?3
)
and not is_held
