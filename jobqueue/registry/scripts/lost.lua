-- Lists what is open and was not seen for long, longest first. ARGV: for how many milliseconds, how many at most, the
-- request queue; empty: any.
local MOST_LOOKS = 10
local limit, before_ms = tonumber(ARGV[2]), whole(now_ms - tonumber(ARGV[1]))
local key = ARGV[3] ~= '' and SEEN .. ':' .. ARGV[3] or SEEN
local found, ids, looks = {}, {}, 0

local function look(id)
  local record, message = load(id), redis.call('GET', MESSAGE .. id)
  if not record.state or is_final(record) then
    redis.call('ZREM', key, id)
  elseif message and remaining_ms(record) <= 0 then
    found[#found + 1] = {record.submission, message}
  else
    see(id, record.queue, now_ms) -- it makes room for those behind it
  end
end

repeat
  ids = redis.call('ZRANGEBYSCORE', key, '-inf', before_ms, 'LIMIT', #found, limit - #found)
  for _, id in ipairs(ids) do
    look(id)
  end
  looks = looks + 1
until #found == limit or #ids == 0 or looks == MOST_LOOKS
return found
