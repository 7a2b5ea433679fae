-- Stores publications, each whole or not at all.
-- Arguments: schema version, publisher, number of this call, how long the number is remembered (ms), how long idempotency
--   keys are remembered (ms), the number of handlers, their names; then for each publication its idempotency key (or
--   empty), its delay (ms), how many events; for each event the envelope, the key (or empty), the slot (or f), how many
--   handlers, their positions.
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

local handlers = {}
local at = 7
for _ = 1, tonumber(ARGV[6]) do
  call('SADD', base .. ':handlers', ARGV[at])
  handlers[#handlers + 1] = handler_key(ARGV[at])
  at = at + 1
end

local answers = {}
local is_new = false
local now
while ARGV[at] do
  local idempotency, delay, events = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  at = at + 3
  local is_duplicate = idempotency ~= ''
    and not call('SET', base .. ':i:' .. idempotency, '1', 'NX', 'PX', ARGV[5])
  answers[#answers + 1] = is_duplicate and '1' or '0'
  local due
  if delay > 0 then
    now = now or now_ms()
    due = now + delay
  end
  for _ = 1, events do
    local blob, key, slot, count = ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
    at = at + 4
    if not is_duplicate then
      is_new = true
      for offset = 0, count - 1 do
        local h = handlers[tonumber(ARGV[at + offset])]
        if due then
          schedule(h, due, slot, key, 0, 0, '', blob)
        else
          enter(h, slot, key, blob)
        end
      end
    end
    at = at + count
  end
end
local answer = table.concat(answers)
call('SET', mark, ARGV[3] .. ' ' .. answer, 'PX', ARGV[4])
if is_new then wake('W') end
return {'OK', answer}
