-- Ends a worker and gives back what it had: cleanly, or because it is dead.
-- Arguments: the incarnation that asks (empty: the worker itself, or the process it lived in), the worker, clean or lost,
--   the counter at which it was seen to stand still (empty: whatever it is).
-- Returns: FENCED, ALIVE, GONE, or OK.
-- Guarantees: *fenced*: from now on every script of that worker is refused. Someone else may declare it dead only if its
--   counter is still where it stood for a whole lease. After a loss its slots are marked, so that whoever takes them
--   counts the crash; its free deliveries are counted here and can be claimed by anyone.
if ARGV[1] ~= '' and call('HEXISTS', base .. ':w', ARGV[1]) == 0 then return {'FENCED'} end
local worker, is_lost = ARGV[2], ARGV[3] == 'lost'
local beat = call('HGET', base .. ':w', worker)
if not beat then return {'GONE'} end
if ARGV[4] ~= '' and beat ~= ARGV[4] then return {'ALIVE'} end

local info = call('HGET', base .. ':wi', worker) or ''
local is_first = true
for name in string.gmatch(info, '%S+') do
  if is_first then
    is_first = false
  else
    local h = handler_key(name)
    local slots = call('HGETALL', h)
    for index = 1, #slots, 2 do
      if slots[index + 1] == worker and string.sub(slots[index], 1, 1) == 'o' then
        local slot = string.sub(slots[index], 2)
        call('HDEL', h, 'o' .. slot)
        if is_lost then call('HSET', h, 'u' .. slot, 1) end
      end
    end
    local ranges = call('HGETALL', h .. ':c:' .. worker)
    for index = 1, #ranges, 2 do
      local first, last = ranges[index], ranges[index + 1]
      local from = first
      local is_empty = true
      while true do
        local entries = call('XRANGE', h .. ':f', from, last, 'COUNT', 100)
        for _, entry in ipairs(entries) do
          is_empty = false
          if not is_lost then break end
          charge(h .. ':mf', entry[1])
        end
        if #entries < 100 or not is_lost then break end
        from = '(' .. entries[100][1]
      end
      if not is_empty then call('RPUSH', h .. ':r', first .. ' ' .. last) end
    end
    call('DEL', h .. ':c:' .. worker)
  end
end
for _, hash in ipairs({'w', 'wi', 't', 'c'}) do call('HDEL', base .. ':' .. hash, worker) end
wake_keepers()
return {'OK'}
