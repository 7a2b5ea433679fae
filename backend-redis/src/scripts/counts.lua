-- How many deliveries there are, for each handler that was ever seen. Reads every state: for people, not for loops.
-- Arguments: the number of slots.
-- Returns: nil if the bus is not prepared; else for each handler its name, ready, waiting, dead.
if call('EXISTS', base .. ':meta') == 0 then return false end
local now = now_ms()
local answer = {}
for _, name in ipairs(call('SMEMBERS', base .. ':handlers')) do
  local h = handler_key(name)
  local stored, waiting, held = call('XLEN', h .. ':f'), 0, 0
  local slots = {'f'}
  for slot = 0, tonumber(ARGV[1]) - 1 do
    slots[#slots + 1] = tostring(slot)
    stored = stored + call('XLEN', h .. ':s' .. slot)
    for _, key in ipairs(call('HKEYS', h .. ':k' .. slot)) do
      stored = stored + call('ZCARD', lane_key(h, slot, key))
    end
  end
  for _, slot in ipairs(slots) do
    for _, text in ipairs(call('HVALS', state_key(h, slot))) do
      local _, _, _, due, is_held = read_state(text)
      if is_held == 1 then
        held = held + 1
      elseif due > now then
        waiting = waiting + 1
      end
    end
  end
  answer[#answer + 1] = name
  answer[#answer + 1] = stored - waiting - held
  answer[#answer + 1] = waiting + call('ZCARD', h .. ':z')
  answer[#answer + 1] = tonumber(call('HGET', base .. ':deadn', name) or 0)
end
return answer
