-- Deliveries behind the cursor that were given back without having run.
-- Inputs: ?1 a JSON array of ids.
-- Result: the columns of claim.sql, in id order.
select id, event_id, name, version, key, payload, headers, published_at, failures, crashes, errors, due_at, is_held
from event_bus_delivery
where id in (select value from json_each(?1)) and not is_parked
order by id
