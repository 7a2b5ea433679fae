-- What the scripts have in common; stands in front of each of them.
-- KEYS[1] is the prefix of the bus, "{name}": all other keys are made from it and so lie in one cluster slot.
local base = KEYS[1]
local call = redis.call

-- Milliseconds since 1970 by the server's clock.
local function now_ms()
  local time = call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function handler_key(name)
  return base .. ':h:' .. name
end

-- The stream and the state hash of a slot; 'f' are the free deliveries.
local function stream_key(h, slot)
  if slot == 'f' then return h .. ':f' end
  return h .. ':s' .. slot
end

local function state_key(h, slot)
  return h .. ':m' .. slot
end

local function lane_key(h, slot, key)
  return h .. ':l' .. slot .. ':' .. key
end

-- Only deliveries that failed, wait, are suspects or are held have a state:
-- "failures crashes started due_at held errors".
local function read_state(text)
  if not text then return 0, 0, 0, 0, 0, '' end
  local failures, crashes, started, due, held, rest = string.match(text, '^(%d+) (%d+) (%d+) (%d+) (%d) ()')
  return tonumber(failures), tonumber(crashes), tonumber(started), tonumber(due), tonumber(held), string.sub(text, rest)
end

local function state_text(failures, crashes, started, due, held, errors)
  return string.format('%d %d %d %d %d ', failures, crashes, started, due, held) .. errors
end

-- A stream id in a form that sorts as text.
local function fixed(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return string.format('%015d-%010d', ms, seq)
end

-- An entry of a lane is "fixed-id blob".
local function lane_entry(lane, id)
  local name = fixed(id)
  return call('ZRANGEBYLEX', lane, '[' .. name .. ' ', '(' .. name .. '!')[1]
end

-- The event of a delivery and where it lies: 's' its stream, 'l' its lane; nil if it is gone.
local function locate(h, slot, key, id)
  local entry = call('XRANGE', stream_key(h, slot), id, id)[1]
  if entry then return entry[2][#entry[2]], 's' end
  if key ~= '' then
    local member = lane_entry(lane_key(h, slot, key), id)
    if member then return string.sub(member, 28), 'l' end
  end
  return nil
end

-- Takes one delivery of a lane out; the last one takes the lane with it.
local function remove_from_lane(h, slot, key, id)
  local lane = lane_key(h, slot, key)
  local name = fixed(id)
  call('ZREMRANGEBYLEX', lane, '[' .. name .. ' ', '(' .. name .. '!')
  if call('ZCARD', lane) == 0 then call('HDEL', h .. ':k' .. slot, key) end
end

local function remove(h, slot, key, id, place)
  if place == 's' then
    call('XDEL', stream_key(h, slot), id)
  else
    remove_from_lane(h, slot, key, id)
  end
  call('HDEL', state_key(h, slot), id)
end

-- Gives a delivery a place at the end of its line.
local function enter(h, slot, key, blob)
  if slot == 'f' then return call('XADD', h .. ':f', '*', 'e', blob) end
  return call('XADD', h .. ':s' .. slot, '*', 'k', key, 'e', blob)
end

-- Lets a delivery without a place wait until `due`. Those due together keep the order in which they came.
local function schedule(h, due, slot, key, failures, crashes, errors, blob)
  local number = string.format('%016d', call('INCR', base .. ':seq'))
  call('ZADD', h .. ':z', due, number .. cmsgpack.pack({slot, key, failures, crashes, errors, blob}))
end

-- Counts a crash for a delivery that may have been running, and its attempt if its start was recorded.
local function charge(states, id)
  local failures, crashes, started, due, held, errors = read_state(call('HGET', states, id))
  if held == 1 then return end
  if started > failures then failures = started end
  call('HSET', states, id, state_text(failures, crashes + 1, 0, due, 0, errors))
end

-- Tells workers that there is something new: free deliveries, and what lies in these slots ("handler slot").
local function wake(hints)
  call('PUBLISH', base .. ':wake', 'W ' .. table.concat(hints, ' '))
end

-- Tells workers that somebody came, went or gave something back.
local function wake_keepers()
  call('PUBLISH', base .. ':wake', 'L')
end
