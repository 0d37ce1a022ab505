-- Holds on to a lease; answers with the reason of the tombstone that lies.
local id, token, ttl_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])
local record = load(id)
if not may_write(record, token) then
  return refuse(record)
end
store(id, 'until_ms', whole(now_ms + ttl_ms), 'span_ms', whole(ttl_ms))
see(id, now_ms)
return {'ok', record.cancel_reason}
