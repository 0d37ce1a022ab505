-- Holds on to a lease; answers 1 when a tombstone lies.
local id, token, ttl_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])
local record = load(id)
if not may_write(record, token) then
  return refuse(record)
end
store(id, 'until_ms', whole(now_ms + ttl_ms), 'span_ms', whole(ttl_ms))
return {'ok', record.is_cancelled == '1' and 1 or 0}
