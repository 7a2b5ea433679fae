-- Another ownership begins: writes of the ones before it are refused from now on.
-- Result: the fence as text.
insert into event_bus_meta (key, value) values ('fence', '1')
on conflict (key) do update set value = cast(cast(value as integer) + 1 as text)
returning value
