-- Gives a slot back: a clean hand-over.
-- Arguments: incarnation, handler, slot, epoch.
-- Returns: FENCED or OK.
-- Guarantees: a copy that arrives late, after the slot was taken again, changes nothing.
if call('HEXISTS', base .. ':w', ARGV[1]) == 0 then return {'FENCED'} end
local h = handler_key(ARGV[2])
if call('HGET', h, 'o' .. ARGV[3]) == ARGV[1] and call('HGET', h, 'e' .. ARGV[3]) == ARGV[4] then
  call('HDEL', h, 'o' .. ARGV[3])
  wake_keepers()
end
return {'OK'}
