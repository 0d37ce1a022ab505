-- Lists what is open and was not seen for long, longest first. ARGV: for how many milliseconds, how many at most, the
-- request queue; empty: any.
local MOST_LOOKS = 10
local limit, before_ms = tonumber(ARGV[2]), whole(now_ms - tonumber(ARGV[1]))
local key = ARGV[3] ~= '' and SEEN .. ':' .. ARGV[3] or SEEN
local found, looked, ids, looks = {}, {}, {}, 0

local function look(id)
  looked[id] = true
  local record, message = load(id), redis.call('GET', MESSAGE .. id)
  if not record.state or is_final(record) then
    redis.call('ZREM', key, id)
  elseif message and remaining_ms(record) <= 0 then
    found[#found + 1] = {record.submission, message}
  else
    see(id, record.queue, now_ms) -- it makes room for those behind it
  end
end

-- What lies ahead is a back-off; where it is none, or too long for one, the clock jumped back, and it is counted from now.
local function recall(id)
  local record = load(id)
  if record.state and not is_final(record) then
    local span_ms = tonumber(record.span_ms)
    if remaining_ms(record) > span_ms + CLOCK_TOLERANCE_MS then
      record.until_ms = whole(now_ms + span_ms)
      store(id, 'until_ms', record.until_ms)
    end
    see(id, record.queue, now_ms + math.max(remaining_ms(record), 0))
  end
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', key, '(' .. whole(now_ms), '+inf', 'LIMIT', 0, limit)) do
  recall(id)
end
repeat
  ids = redis.call('ZRANGEBYSCORE', key, '-inf', before_ms, 'LIMIT', #found, limit - #found)
  for _, id in ipairs(ids) do
    -- What was seen within this millisecond may have changed its place.
    if not looked[id] then
      look(id)
    end
  end
  looks = looks + 1
until #found == limit or #ids == 0 or looks == MOST_LOOKS
return found
