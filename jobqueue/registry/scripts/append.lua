-- Adds bytes to a live log. ARGV: id, token, stream, attempt, offset, bytes, largest piece, most bytes kept.
--
-- An entry's id counts the bytes up to its end, from the clock in microseconds: so the stream can be cut to a number of bytes,
-- and a reader's cursor stays behind everything that a stream begun anew will hold.
local id, token, stream, attempt = unpack(ARGV, 1, 4)
local offset, bytes, piece_bytes, kept_bytes = tonumber(ARGV[5]), ARGV[6], tonumber(ARGV[7]), tonumber(ARGV[8])
local record = load(id)
if not may_write(record, token) then
  return refuse(record, token)
end

local key = 'jobqueue:log:' .. id .. ':' .. stream
local last_end = tonumber(time[1]) * 1000000 + tonumber(time[2])
local last = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
if last then
  last_end = tonumber(string.match(last[1], '^%d+'))
  local fields = last[2] -- attempt, offset, bytes: names and values in turn
  local known_end = tonumber(fields[4]) + #fields[6]
  if fields[2] == attempt and offset < known_end then
    -- Sent again, by a call that got no answer or a worker that went back.
    bytes = string.sub(bytes, known_end - offset + 1)
    offset = known_end
  end
end

for first = 1, #bytes, piece_bytes do
  local piece = string.sub(bytes, first, first + piece_bytes - 1)
  last_end = last_end + #piece
  redis.call('XADD', key, whole(last_end) .. '-0',
    'attempt', attempt, 'offset', whole(offset + first - 1), 'bytes', piece)
end
redis.call('XTRIM', key, 'MINID', whole(last_end - kept_bytes))
redis.call('PEXPIRE', key, whole(DAY_MS))
return {'ok'}
