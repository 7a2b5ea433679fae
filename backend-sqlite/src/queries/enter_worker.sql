-- A worker begins: what it may come to hold.
-- Inputs: ?1 handler id, ?2 incarnation, ?3 window.
insert into event_bus_worker (handler_id, incarnation, window) values (?1, ?2, ?3)
