-- Hands out the next numbers of handlers.
-- Guarantees: a number is handed out once, and since the caller holds the write lock until it commits, deliveries of a
--   handler become visible in the order of their ids. The claim's cursor rests on this.
-- Inputs: ?1 a JSON object of handler id to how many.
-- Result: handler id, the last number handed out.
update event_bus_handler as h
set last_seq = h.last_seq + w.value
from json_each(?1) as w
where h.id = cast(w.key as integer)
returning id, last_seq
