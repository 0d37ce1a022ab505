-- Gives a role to a worker, unless another one has it. ARGV: role, worker id, milliseconds.
local key, worker_id, span_ms = 'jobqueue:elected:' .. ARGV[1], ARGV[2], tonumber(ARGV[3])
local found = redis.call('HMGET', key, 'worker_id', 'until_ms', 'span_ms')
if found[1] and found[1] ~= worker_id then
  local left_ms = tonumber(found[2]) - now_ms
  if left_ms > tonumber(found[3]) + CLOCK_TOLERANCE_MS then
    -- The clock jumped back: who lives asks again within that time.
    redis.call('HSET', key, 'until_ms', whole(now_ms + tonumber(found[3])))
  end
  if left_ms > 0 then
    return 0
  end
end
redis.call('HSET', key, 'worker_id', worker_id, 'until_ms', whole(now_ms + span_ms), 'span_ms', whole(span_ms))
-- Not the end of the role, which the server's own clock would stretch: a role that nobody wants any more leaves nothing.
redis.call('PEXPIRE', key, whole(DAY_MS + span_ms))
return 1
