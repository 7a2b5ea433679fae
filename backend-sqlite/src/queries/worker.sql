-- What the last worker may have held: rows only after an unclean end.
-- Result: handler id, window.
select handler_id, window from event_bus_worker
