-- Stores deliveries.
-- Inputs: one row of values per delivery, in id order; the row is repeated.
insert into event_bus_delivery
    (id, event_id, name, version, key, payload, headers, published_at)
values
(?, ?, ?, ?, ?, ?, ?, ?)
