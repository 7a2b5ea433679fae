-- Wakes the workers that listen: a hint, in a statement of its own, never in the transaction of a publish.
-- Inputs: $1 channel, $2 what about: nothing for work, `leases` for ownership.
select pg_notify($1, $2)
