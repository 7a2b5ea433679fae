-- Stores publications, each whole or not at all.
-- Arguments: schema version, publisher, number of this call, how long the number is remembered (ms), how long idempotency
--   keys are remembered (ms), the number of handlers, their names; then for each publication its idempotency key (or
--   empty), its delay (ms), how many events, how many handlers all of them have in common (0: each has its own), their
--   positions; for each event the envelope, the slot (or f), its key if it has a slot, and where they are not in common
--   how many handlers and their positions.
-- Returns: OK and for each publication 0 or, if its idempotency key is remembered, 1; ALREADY and the same if a call of
--   this number was executed; LATE if one of a later number was; UNPREPARED and the stored schema version.
-- Guarantees: *atomic*. *idempotent*: a repeat, or a copy that arrives late, changes nothing. Ids grow in the order of
--   calls, so a cursor over a stream misses nothing.
local schema = call('HGET', base .. ':meta', 'schema')
if schema ~= ARGV[1] then return {'UNPREPARED', schema or ''} end
local mark = base .. ':p:' .. ARGV[2]
local number = tonumber(ARGV[3])
local last = call('GET', mark)
if last then
  local stored, answer = string.match(last, '^(%d+) (.*)$')
  stored = tonumber(stored)
  if stored == number then return {'ALREADY', answer} end
  if stored > number then return {'LATE'} end
end

local names, handlers, streams = {}, {}, {}
local at = 7
for position = 1, tonumber(ARGV[6]) do
  names[position] = ARGV[at]
  handlers[position] = handler_key(ARGV[at])
  streams[position] = {}
  at = at + 1
end
if #names > 0 then call('SADD', base .. ':handlers', unpack(names)) end

-- The positions of handlers, which begin with their number.
local function positions()
  local found = {}
  for offset = 1, tonumber(ARGV[at]) do found[offset] = tonumber(ARGV[at + offset]) end
  at = at + 1 + #found
  return found
end

-- Where there is something new.
local news, hints = {}, {}
local answers = {}
local is_new = false
local now
while ARGV[at] do
  local idempotency, delay, events = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  at = at + 3
  local common = positions()
  local is_duplicate = idempotency ~= ''
    and not call('SET', base .. ':i:' .. idempotency, '1', 'NX', 'PX', ARGV[5])
  answers[#answers + 1] = is_duplicate and '1' or '0'
  local due
  if delay > 0 then
    now = now or now_ms()
    due = now + delay
  end
  is_new = is_new or not is_duplicate
  for _ = 1, events do
    local blob, slot, key = ARGV[at], ARGV[at + 1], ''
    at = at + 2
    if slot ~= 'f' then
      key = ARGV[at]
      at = at + 1
    end
    local wanted = #common > 0 and common or positions()
    if not is_duplicate then
      for _, position in ipairs(wanted) do
        if due then
          schedule(handlers[position], due, slot, key, 0, 0, '', blob)
        else
          -- As `enter` does, without making the name of the stream each time.
          local stream = streams[position][slot]
          if not stream then
            stream = stream_key(handlers[position], slot)
            streams[position][slot] = stream
          end
          if slot == 'f' then
            call('XADD', stream, '*', 'e', blob)
          else
            call('XADD', stream, '*', 'k', key, 'e', blob)
            if not news[stream] then
              news[stream] = true
              hints[#hints + 1] = names[position] .. ' ' .. slot
            end
          end
        end
      end
    end
  end
end
local answer = table.concat(answers)
call('SET', mark, ARGV[3] .. ' ' .. answer, 'PX', ARGV[4])
if is_new then wake(hints) end
return {'OK', answer}
