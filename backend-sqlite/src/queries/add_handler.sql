-- Gives a handler name its id, on first sight.
-- Inputs: ?1 the name.
-- Result: the id.
insert into event_bus_handler (name) values (?1)
on conflict (name) do update set name = name
returning id
