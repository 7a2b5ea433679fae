-- Hands out deliveries.
-- Arguments: incarnation, the accepted run id, the number of this claim, the most bytes, how many deliveries that are due
--   get a place, how many handlers, their names; then what is asked for, one after the other:
--   V handler, n, n starts of ranges: what this worker holds of the free deliveries in other ranges than these (an answer
--     was lost);
--   R handler, slot, key, after, limit: parked deliveries of a lane behind `after` (in the form that sorts);
--   X handler, slot, key, id: one delivery again that was given back;
--   S handler, limit, after, slots and their cursors (n pairs, preceded by n): new deliveries of slots, at most limit in
--     all and about as many of each;
--   F handler, limit: free deliveries; what S of the same handler, asked just before, left of its limit is added.
-- Returns: FENCED, LATE (a claim of a later number was executed), WAIT (no rights are given yet), or OK, the
--   server's time, milliseconds until the next delivery is due (or -1), whether more are due now, then for each question its answer:
--   V, F: 1 if there may be more, then ranges; for each start, end and entries (id, envelope, state).
--   R: the first that is still parked (or empty), entries (id, envelope, state).
--   X: entries (id, envelope, state), one or none.
--   S: slots with entries; for each the slot, 1 if there may be more, entries (id, key, envelope, state).
-- Guarantees: *exclusive*: a free delivery lies in the range of one worker; slots are read by their owner alone. What is
--   handed out is on record, so that a crash can be counted. *idempotent*: a copy that arrives late changes nothing.
if call('HEXISTS', base .. ':w', ARGV[1]) == 0 then return {'FENCED'} end
local me = ARGV[1]
local number = tonumber(ARGV[3])
if tonumber(call('HGET', base .. ':c', me) or 0) >= number then return {'LATE'} end
call('HSET', base .. ':c', me, number)
if call('HGET', base .. ':meta', 'run') ~= ARGV[2] then return {'WAIT'} end

-- Entries are read in parts: a thousand of the largest events at once would take a gigabyte.
local PART = 128
local bytes_left = tonumber(ARGV[4])
local names, handlers = {}, {}
local at = 7
for position = 1, tonumber(ARGV[6]) do
  names[position] = ARGV[at]
  handlers[position] = handler_key(ARGV[at])
  at = at + 1
end

-- Gives what is due its place.
local next_due, has_more_due = -1, 0
local now = now_ms()
for position, h in ipairs(handlers) do
  local z = h .. ':z'
  local first = call('ZRANGE', z, 0, 0, 'WITHSCORES')
  if first[1] and tonumber(first[2]) <= now then
    local due = call('ZRANGE', z, '-inf', now, 'BYSCORE', 'LIMIT', 0, ARGV[5])
    local hints, news = {}, {}
    for _, member in ipairs(due) do
      local waiting = cmsgpack.unpack(string.sub(member, 17))
      local slot = waiting[1]
      local id = enter(h, slot, waiting[2], waiting[6])
      if slot ~= 'f' and not news[slot] then
        news[slot] = true
        hints[#hints + 1] = names[position] .. ' ' .. slot
      end
      if waiting[3] > 0 or waiting[4] > 0 or waiting[5] ~= '' then
        local state = state_text(waiting[3], waiting[4], 0, 0, 0, waiting[5])
        call('HSET', state_key(h, slot), id, state)
      end
    end
    call('ZREM', z, unpack(due))
    wake(hints)
    first = call('ZRANGE', z, 0, 0, 'WITHSCORES')
  end
  if first[1] then
    local wait = tonumber(first[2]) - now
    if wait <= 0 then has_more_due, wait = 1, 0 end
    if next_due < 0 or wait < next_due then next_due = wait end
  end
end

local answer = {'OK', now, next_due, has_more_due}

-- Appends entries of a stream: id, (key,) envelope, state. Stops when the bytes are used up; says how many it took.
local function append(into, entries, states)
  local has_states = #entries > 0 and call('EXISTS', states) == 1
  local taken = 0
  for _, entry in ipairs(entries) do
    if bytes_left <= 0 then break end
    local fields = entry[2]
    into[#into + 1] = entry[1]
    if #fields == 4 then into[#into + 1] = fields[2] end
    into[#into + 1] = fields[#fields]
    into[#into + 1] = has_states and call('HGET', states, entry[1]) or ''
    bytes_left = bytes_left - #fields[#fields]
    taken = taken + 1
  end
  return taken
end

local function append_lane(into, member, states)
  local ms, seq = string.match(member, '^0*(%d+)%-0*(%d+) ')
  local id = ms .. '-' .. seq
  into[#into + 1] = id
  into[#into + 1] = string.sub(member, 28)
  into[#into + 1] = call('HGET', states, id) or ''
  bytes_left = bytes_left - #member
end

local questions = {}
-- What the slots of a handler left of their limit; its free deliveries may have it.
local spare = 0

function questions.V()
  local h, known = handlers[tonumber(ARGV[at])], {}
  local count = tonumber(ARGV[at + 1])
  for offset = 1, count do known[ARGV[at + 1 + offset]] = true end
  at = at + 2 + count
  local found = {0}
  local ranges = call('HGETALL', h .. ':c:' .. me)
  for index = 1, #ranges, 2 do
    if not known[ranges[index]] then
      local entries = call('XRANGE', h .. ':f', ranges[index], ranges[index + 1])
      local range = {ranges[index], ranges[index + 1]}
      -- All of them: they are held already.
      local left = bytes_left
      bytes_left = math.huge
      append(range, entries, h .. ':mf')
      bytes_left = left
      found[#found + 1] = range
    end
  end
  return found
end

function questions.R()
  local h, slot, key, after, limit = handlers[tonumber(ARGV[at])], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
  at = at + 5
  local lane, lanes = lane_key(h, slot, key), h .. ':k' .. slot
  local found = {''}
  if call('HEXISTS', lanes, key) == 0 then return found end
  local from = '(' .. after .. '!'
  local last
  for _, member in ipairs(call('ZRANGEBYLEX', lane, from, '+', 'LIMIT', 0, limit)) do
    if bytes_left <= 0 then break end
    append_lane(found, member, h .. ':m' .. slot)
    last = string.sub(member, 1, 26)
  end
  if last then
    call('HSET', lanes, key, last)
    from = '(' .. last .. '!'
  end
  local still = call('ZRANGEBYLEX', lane, from, '+', 'LIMIT', 0, 1)[1]
  if still then found[1] = string.sub(still, 1, 26) end
  return found
end

function questions.X()
  local h, slot, key, id = handlers[tonumber(ARGV[at])], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  at = at + 4
  local blob = locate(h, slot, key, id)
  if not blob then return {} end
  bytes_left = bytes_left - #blob
  return {id, blob, call('HGET', state_key(h, slot), id) or ''}
end

function questions.S()
  local h, left = handlers[tonumber(ARGV[at])], tonumber(ARGV[at + 1])
  local count = tonumber(ARGV[at + 2])
  at = at + 3
  local open, found = {}, {}
  for _ = 1, count do
    open[#open + 1] = {slot = ARGV[at], from = '(' .. ARGV[at + 1]}
    at = at + 2
  end
  -- Equal shares first; what the empty ones leave is shared once more.
  while #open > 0 and left > 0 and bytes_left > 0 do
    local share = math.ceil(left / #open)
    local full = {}
    for _, one in ipairs(open) do
      local wanted = math.min(share, left, PART)
      if wanted > 0 and bytes_left > 0 then
        local entries = call('XRANGE', h .. ':s' .. one.slot, one.from, '+', 'COUNT', wanted)
        if #entries > 0 then
          if not one.found then
            one.found = {one.slot, 0}
            found[#found + 1] = one.found
          end
          local taken = append(one.found, entries, h .. ':m' .. one.slot)
          left = left - taken
          if taken > 0 then
            one.last = entries[taken][1]
            one.from = '(' .. one.last
          end
          one.found[2] = (#entries == wanted or taken < #entries) and 1 or 0
          if #entries == wanted then full[#full + 1] = one end
        end
      elseif one.found then
        one.found[2] = 1
      else
        one.found = {one.slot, 1}
        found[#found + 1] = one.found
      end
    end
    for _, one in ipairs(open) do
      if one.last then
        call('HSET', h, 'w' .. one.slot, one.last)
        one.last = nil
      end
    end
    open = full
  end
  spare = left
  return found
end

function questions.F()
  local h, left = handlers[tonumber(ARGV[at])], tonumber(ARGV[at + 1]) + spare
  at = at + 2
  spare = 0
  local stream, returned, mine = h .. ':f', h .. ':r', h .. ':c:' .. me
  local found = {0}
  -- What others gave back comes first.
  while left > 0 and bytes_left > 0 do
    local range = call('LPOP', returned)
    if not range then break end
    local first, last = string.match(range, '^(%S+) (%S+)$')
    local entries = call('XRANGE', stream, first, last, 'COUNT', math.min(left, PART))
    if #entries > 0 then
      local taken = {entries[1][1], ''}
      local count = append(taken, entries, h .. ':mf')
      taken[2] = entries[count][1]
      left = left - count
      found[#found + 1] = taken
      call('HSET', mine, taken[1], taken[2])
      if taken[2] ~= last then
        local rest = call('XRANGE', stream, '(' .. taken[2], last, 'COUNT', 1)[1]
        if rest then call('LPUSH', returned, rest[1] .. ' ' .. last) end
      end
    end
  end
  local position, taken = call('HGET', h, 'pos') or '0-0', nil
  while left > 0 and bytes_left > 0 do
    local wanted = math.min(left, PART)
    local entries = call('XRANGE', stream, '(' .. position, '+', 'COUNT', wanted)
    if #entries == 0 then break end
    taken = taken or {entries[1][1], ''}
    local count = append(taken, entries, h .. ':mf')
    position = entries[count][1]
    left = left - count
    if #entries < wanted then break end
  end
  if taken then
    taken[2] = position
    found[#found + 1] = taken
    call('HSET', mine, taken[1], position)
    call('HSET', h, 'pos', position)
  end
  if left <= 0 or bytes_left <= 0 then found[1] = 1 end
  return found
end

while ARGV[at] do
  local question = questions[ARGV[at]]
  at = at + 1
  answer[#answer + 1] = question()
end
return answer
