-- Begins a write and reads the number of the present ownership: a settle of an older one must write nothing.
-- Guarantees: IMMEDIATE takes the write lock now, so nothing of this transaction can fail with SQLITE_BUSY later.
-- Result: the fence as text, no row before the first migration.
begin immediate;
select value from event_bus_meta where key = 'fence'
