-- Deletes dead letters and lets go of the keys they hold.
-- Arguments: ids of dead letters.
-- Returns: how many.
local count = 0
for _, dead in ipairs(ARGV) do
  local entry = call('XRANGE', base .. ':dead', dead, dead)[1]
  if entry then
    local of = {}
    for index = 1, #entry[2], 2 do of[entry[2][index]] = entry[2][index + 1] end
    local h = handler_key(of.h)
    if of.y == '1' then
      local _, _, _, _, held = read_state(call('HGET', state_key(h, of.s), of.o))
      if held == 1 then
        local _, place = locate(h, of.s, of.k, of.o)
        if place then remove(h, of.s, of.k, of.o, place) end
      end
    end
    call('XDEL', base .. ':dead', dead)
    if call('HINCRBY', base .. ':deadn', of.h, -1) <= 0 then call('HDEL', base .. ':deadn', of.h) end
    count = count + 1
  end
end
if count > 0 then wake({}) end
return count
