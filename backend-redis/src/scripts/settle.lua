-- Stores outcomes.
-- Arguments: incarnation, the number of this batch (empty for one that can be said at any time), how many handlers, their names; then outcomes, one after the other:
--   C handler, slot, n, n ids: complete, in their stream;
--   L handler, slot, key, id: complete, in their lane;
--   G handler, n, n starts: ranges of free deliveries of which nothing is left;
--   S handler, slot, id, attempt: a suspect is about to run;
--   I handler, slot, id, failures, delay (ms), errors: retry in place;
--   Z handler, slot, id, delay (ms): snooze in place;
--   Y handler, slot, key, id, failures (or empty), delay (ms), errors: leave, and come back when due;
--   D handler, slot, key, id, name of the handler, reason, failures, errors, 1 if it holds its key: to the dead letters;
--   B handler, slot, key, id: given back without having run;
--   P handler, slot, key, mark, n, n ids: park; what stands behind `mark` (in the form that sorts) is parked.
-- Returns: FENCED, ALREADY or OK.
-- Guarantees: *fenced*: a worker that was declared dead writes nothing. *idempotent*: a batch whose number is not above
--   the last one changes nothing, so a repeat and a copy that arrives late are harmless.
local me = ARGV[1]
if call('HEXISTS', base .. ':w', me) == 0 then return {'FENCED'} end
local has_number = ARGV[2] ~= ''
if has_number and tonumber(call('HGET', base .. ':t', me) or 0) >= tonumber(ARGV[2]) then return {'ALREADY'} end

local handlers = {}
local at = 4
for _ = 1, tonumber(ARGV[3]) do
  handlers[#handlers + 1] = handler_key(ARGV[at])
  at = at + 1
end

local now = now_ms()
local has_news = false

-- The next `count` arguments; a call takes only a few thousand.
local function each_part(count, act)
  local first = at
  at = at + count
  while first < at do
    local last = math.min(first + 499, at - 1)
    act(first, last)
    first = last + 1
  end
end

local outcomes = {}

function outcomes.C()
  local h, slot, count = handlers[tonumber(ARGV[at])], ARGV[at + 1], tonumber(ARGV[at + 2])
  at = at + 3
  local stream, states = stream_key(h, slot), state_key(h, slot)
  local has_states = call('EXISTS', states) == 1
  each_part(count, function(first, last)
    call('XDEL', stream, unpack(ARGV, first, last))
    if has_states then call('HDEL', states, unpack(ARGV, first, last)) end
  end)
end

function outcomes.L()
  local h, slot, key, id = handlers[tonumber(ARGV[at])], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  at = at + 4
  remove(h, slot, key, id, 'l')
end

function outcomes.G()
  local h, count = handlers[tonumber(ARGV[at])], tonumber(ARGV[at + 1])
  at = at + 2
  each_part(count, function(first, last)
    call('HDEL', h .. ':c:' .. me, unpack(ARGV, first, last))
  end)
end

function outcomes.S()
  local states, id = state_key(handlers[tonumber(ARGV[at])], ARGV[at + 1]), ARGV[at + 2]
  local failures, crashes, _, due, held, errors = read_state(call('HGET', states, id))
  call('HSET', states, id, state_text(failures, crashes, ARGV[at + 3], due, held, errors))
  at = at + 4
end

function outcomes.I()
  local states, id = state_key(handlers[tonumber(ARGV[at])], ARGV[at + 1]), ARGV[at + 2]
  local _, crashes = read_state(call('HGET', states, id))
  call('HSET', states, id, state_text(ARGV[at + 3], crashes, 0, now + ARGV[at + 4], 0, ARGV[at + 5]))
  at = at + 6
end

function outcomes.Z()
  local states, id = state_key(handlers[tonumber(ARGV[at])], ARGV[at + 1]), ARGV[at + 2]
  local failures, crashes, _, _, _, errors = read_state(call('HGET', states, id))
  call('HSET', states, id, state_text(failures, crashes, 0, now + ARGV[at + 3], 0, errors))
  at = at + 4
end

function outcomes.Y()
  local h, slot, key, id = handlers[tonumber(ARGV[at])], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local blob, place = locate(h, slot, key, id)
  if blob then
    local failures, crashes, _, _, _, errors = read_state(call('HGET', state_key(h, slot), id))
    if ARGV[at + 4] ~= '' then
      failures, errors = ARGV[at + 4], ARGV[at + 6]
    end
    schedule(h, now + ARGV[at + 5], slot, key, tonumber(failures), crashes, errors, blob)
    remove(h, slot, key, id, place)
    has_news = true
  end
  at = at + 7
end

function outcomes.D()
  local h, slot, key, id = handlers[tonumber(ARGV[at])], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local name, reason, failures, errors, holds = ARGV[at + 4], ARGV[at + 5], ARGV[at + 6], ARGV[at + 7], ARGV[at + 8]
  at = at + 9
  local blob, place = locate(h, slot, key, id)
  if not blob then return end
  local _, crashes, _, _, held = read_state(call('HGET', state_key(h, slot), id))
  if held == 1 then return end
  call('XADD', base .. ':dead', '*', 'h', name, 'o', id, 's', slot, 'k', key, 'f', failures, 'c', crashes, 'x', errors,
    'r', reason, 'd', now, 'y', holds, 'e', blob)
  call('HINCRBY', base .. ':deadn', name, 1)
  if holds == '1' then
    call('HSET', state_key(h, slot), id, state_text(failures, crashes, 0, 0, 1, errors))
  else
    remove(h, slot, key, id, place)
  end
end

function outcomes.B()
  local h, slot, key, id = handlers[tonumber(ARGV[at])], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  at = at + 4
  local states = state_key(h, slot)
  local text = call('HGET', states, id)
  if text then
    local failures, crashes, _, due, held, errors = read_state(text)
    text = state_text(failures, crashes, 0, due, held, errors)
    call('HSET', states, id, text)
  end
  if slot == 'f' then
    -- Anyone may have it: it joins the end of the line.
    local blob = locate(h, slot, key, id)
    if blob then
      local again = enter(h, slot, key, blob)
      if text then call('HSET', states, again, text) end
      remove(h, slot, key, id, 's')
      has_news = true
    end
  end
end

function outcomes.P()
  local h, slot, key, mark = handlers[tonumber(ARGV[at])], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local count = tonumber(ARGV[at + 4])
  at = at + 5
  local lane, stream = lane_key(h, slot, key), h .. ':s' .. slot
  each_part(count, function(first, last)
    for position = first, last do
      local entry = call('XRANGE', stream, ARGV[position], ARGV[position])[1]
      if entry then
        call('ZADD', lane, 0, fixed(entry[1]) .. ' ' .. entry[2][4])
        call('XDEL', stream, entry[1])
      end
    end
  end)
  if call('EXISTS', lane) == 1 then
    local handed = call('HGET', h .. ':k' .. slot, key)
    if not handed or handed > mark then call('HSET', h .. ':k' .. slot, key, mark) end
  end
end

while ARGV[at] do
  local outcome = outcomes[ARGV[at]]
  at = at + 1
  outcome()
end
if has_number then call('HSET', base .. ':t', me, ARGV[2]) end
if has_news then wake({}) end
return {'OK'}
