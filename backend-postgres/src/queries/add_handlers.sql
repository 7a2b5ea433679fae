-- Gives handler names their ids, on first sight.
-- Guarantees: an id is never given to two names; who loses a race finds the other's with handlers.sql.
-- Inputs: $1 names.
insert into event_bus.handler (name) select unnest($1::text[]) on conflict do nothing
