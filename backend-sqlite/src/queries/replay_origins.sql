-- What there is to replay.
-- Inputs: ?1 a JSON array of ids of dead letters.
-- Result: id, handler id, the id of the delivery it was, in the order in which they were published.
select id, handler_id, origin_id from event_bus_dead
where id in (select value from json_each(?1))
order by origin_id, id
