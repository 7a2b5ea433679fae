-- Stores deliveries that are published with a delay.
-- Inputs: one row of values per delivery; the row is repeated.
insert into event_bus_scheduled
    (due_at, handler_id, event_id, name, version, key, payload, headers, published_at)
values
(?, ?, ?, ?, ?, ?, ?, ?, ?)
