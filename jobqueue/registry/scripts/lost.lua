-- Lists what is open and was not seen for long, longest first. ARGV: for how many milliseconds, how many at most.
local found = {}
local before_ms = whole(now_ms - tonumber(ARGV[1]))
for _, id in ipairs(redis.call('ZRANGEBYSCORE', SEEN, '-inf', before_ms, 'LIMIT', 0, ARGV[2])) do
  local record, message = load(id), redis.call('GET', MESSAGE .. id)
  if not record.state or is_final(record) then
    redis.call('ZREM', SEEN, id)
  elseif message and remaining_ms(record) <= 0 then
    found[#found + 1] = {record.submission, message}
  else
    see(id, now_ms) -- it makes room for those behind it
  end
end
return found
