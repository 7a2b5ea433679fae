-- Takes free slots of a handler.
-- Arguments: incarnation, the accepted run id, the handler, the slots.
-- Returns: FENCED, or OK and for each slot that is now owned: slot, epoch, how many parked lanes, and for each of these
--   its key and its first delivery.
-- Guarantees: *one-at-a-time*: an owned slot is not taken; a slot that the caller owns already is answered again, without
--   another epoch. Epochs grow. They are of the size of the server's clock, so that they grow as well when a replica takes
--   over, or a file is restored, that does not know the last ones. *bounded-attempts*: what a vanished owner had been handed
--   is counted as crashed, once. Lanes are parked from their first delivery on: what an owner held of a parked lane in
--   memory joins the lane.
if call('HEXISTS', base .. ':w', ARGV[1]) == 0 then return {'FENCED'} end
local answer = {'OK'}
if call('HGET', base .. ':meta', 'run') ~= ARGV[2] then return answer end
local h = handler_key(ARGV[3])
local now = now_ms()

local function charge_stream(slot, last)
  local from = '-'
  while true do
    local entries = call('XRANGE', h .. ':s' .. slot, from, last, 'COUNT', 100)
    for _, entry in ipairs(entries) do charge(h .. ':m' .. slot, entry[1]) end
    if #entries < 100 then return end
    from = '(' .. entries[100][1]
  end
end

local function line_up(slot, last)
  local from = '-'
  while true do
    local entries = call('XRANGE', h .. ':s' .. slot, from, last, 'COUNT', 100)
    for _, entry in ipairs(entries) do
      local key = entry[2][2]
      if call('HEXISTS', h .. ':k' .. slot, key) == 1 then
        call('ZADD', lane_key(h, slot, key), 0, fixed(entry[1]) .. ' ' .. entry[2][4])
        call('XDEL', h .. ':s' .. slot, entry[1])
      end
    end
    if #entries < 100 then return end
    from = '(' .. entries[100][1]
  end
end

for position = 4, #ARGV do
  local slot = ARGV[position]
  local owner = call('HGET', h, 'o' .. slot)
  if not owner or owner == ARGV[1] then
    local lanes = call('HGETALL', h .. ':k' .. slot)
    if not owner then
      call('HSET', h, 'o' .. slot, ARGV[1])
      local epoch = math.max(tonumber(call('HGET', h, 'e' .. slot) or 0) + 1, now)
      call('HSET', h, 'e' .. slot, string.format('%.0f', epoch))
      local last = call('HGET', h, 'w' .. slot)
      if call('HDEL', h, 'u' .. slot) == 1 then
        if last then charge_stream(slot, last) end
        for index = 1, #lanes, 2 do
          if lanes[index + 1] ~= '' then
            local held = call('ZRANGEBYLEX', lane_key(h, slot, lanes[index]), '-', '(' .. lanes[index + 1] .. '!')
            for _, member in ipairs(held) do
              local ms, seq = string.match(member, '^0*(%d+)%-0*(%d+) ')
              charge(h .. ':m' .. slot, ms .. '-' .. seq)
            end
          end
        end
      end
      for index = 1, #lanes, 2 do call('HSET', h .. ':k' .. slot, lanes[index], '') end
      if last and #lanes > 0 then line_up(slot, last) end
      call('HDEL', h, 'w' .. slot)
    end
    answer[#answer + 1] = slot
    answer[#answer + 1] = call('HGET', h, 'e' .. slot)
    answer[#answer + 1] = #lanes / 2
    for index = 1, #lanes, 2 do
      answer[#answer + 1] = lanes[index]
      local first = call('ZRANGEBYLEX', lane_key(h, slot, lanes[index]), '-', '+', 'LIMIT', 0, 1)[1]
      answer[#answer + 1] = first and string.sub(first, 1, 26) or ''
    end
  end
end
return answer
