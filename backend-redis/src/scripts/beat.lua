-- A worker lives: raises its counter and looks at the others.
-- Arguments: its incarnation, a run id to accept from now on (or empty), the names of its handlers.
-- Returns: FENCED, or OK, the accepted run id, the counters, what the workers registered, then for each handler what is
--   known of its slots.
-- Guarantees: a worker that was declared dead is told so and stays dead.
if call('HEXISTS', base .. ':w', ARGV[1]) == 0 then return {'FENCED'} end
call('HINCRBY', base .. ':w', ARGV[1], 1)
if ARGV[2] ~= '' then call('HSET', base .. ':meta', 'run', ARGV[2]) end
local answer = {
  'OK', call('HGET', base .. ':meta', 'run') or '', call('HGETALL', base .. ':w'), call('HGETALL', base .. ':wi'),
}
for position = 3, #ARGV do
  answer[#answer + 1] = call('HGETALL', handler_key(ARGV[position]))
end
return answer
