-- Makes deliveries of dead letters again, in the order of the arguments.
-- Arguments: ids of dead letters.
-- Returns: how many.
-- Guarantees: *atomic*: each is either dead or a delivery. One that holds its key comes back in its old place, with all
--   attempts before it; the others join the end of their lines.
local count = 0
local hints = {}
for _, dead in ipairs(ARGV) do
  local entry = call('XRANGE', base .. ':dead', dead, dead)[1]
  if entry then
    local of = {}
    for index = 1, #entry[2], 2 do of[entry[2][index]] = entry[2][index + 1] end
    local h = handler_key(of.h)
    local states = state_key(h, of.s)
    local is_back = false
    if of.y == '1' then
      local text = call('HGET', states, of.o)
      local _, crashes, _, _, held = read_state(text)
      if held == 1 then
        is_back = true
        if crashes > 0 then
          call('HSET', states, of.o, state_text(0, crashes, 0, 0, 0, ''))
        else
          call('HDEL', states, of.o)
        end
      end
    end
    if not is_back then
      local id = enter(h, of.s, of.k, of.e)
      if tonumber(of.c) > 0 then call('HSET', states, id, state_text(0, of.c, 0, 0, 0, '')) end
    end
    call('XDEL', base .. ':dead', dead)
    if call('HINCRBY', base .. ':deadn', of.h, -1) <= 0 then call('HDEL', base .. ':deadn', of.h) end
    if of.s ~= 'f' then hints[#hints + 1] = of.h .. ' ' .. of.s end
    count = count + 1
  end
end
if count > 0 then wake(hints) end
return count
