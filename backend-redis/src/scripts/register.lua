-- Enters a worker.
-- Arguments: its incarnation, its lease (ms) followed by the names of its handlers, the names once more.
-- Returns: schema version and slots of the bus (nil: not prepared), the run id under which rights are given.
-- Guarantees: it owns nothing yet. Nothing is written in a bus that is not prepared.
local meta = call('HMGET', base .. ':meta', 'schema', 'slots', 'run')
if meta[1] ~= ARGV[3] or meta[2] ~= ARGV[4] then return meta end
call('HSET', base .. ':w', ARGV[1], 0)
call('HSET', base .. ':wi', ARGV[1], ARGV[2])
for position = 5, #ARGV do call('SADD', base .. ':handlers', ARGV[position]) end
wake_keepers()
return meta
