-- Notes something about the store.
-- Inputs: $1 key, $2 value.
insert into event_bus.meta (key, value) values ($1, $2) on conflict (key) do update set value = excluded.value
