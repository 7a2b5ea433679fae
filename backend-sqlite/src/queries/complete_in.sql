-- Forgets one delivery in the transaction of its handler.
-- Guarantees: the write lock that this takes is held until that transaction ends, so nobody can take the file over
--   between this check and the commit.
-- Inputs: ?1 id, ?2 the fence of the session as text.
-- Result: 1 row changed, or 0 if the right to it is gone.
delete from event_bus_delivery
where id = ?1 and not is_held and ?2 = (select value from event_bus_meta where key = 'fence')
