-- Begins the library's part of the caller's transaction.
-- Guarantees: takes the write lock before anything is read, so a transaction that has only just begun waits for the lock
--   instead of failing; without a transaction around it, the part is a transaction of its own.
savepoint event_bus;
update event_bus_meta set value = value where key = ''
