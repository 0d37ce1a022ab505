-- Lists the workers whose time is not over, and forgets the others.
for _, worker_id in ipairs(redis.call('ZRANGEBYSCORE', 'jobqueue:worker_ends', '-inf', whole(now_ms))) do
  redis.call('ZREM', 'jobqueue:worker_ends', worker_id)
  redis.call('HDEL', 'jobqueue:worker_spans', worker_id)
  redis.call('HDEL', 'jobqueue:workers', worker_id)
end
local spans, ends = redis.call('HGETALL', 'jobqueue:worker_spans'), {}
for i = 1, #spans, 2 do
  ends[spans[i]] = now_ms + tonumber(spans[i + 1])
end
-- Who ends later than if announced now was announced before the clock jumped back, and may have gone since.
local left = redis.call('ZRANGEBYSCORE', 'jobqueue:worker_ends', '(' .. whole(now_ms), '+inf', 'WITHSCORES')
for i = 1, #left, 2 do
  local latest_ms = ends[left[i]]
  if latest_ms and tonumber(left[i + 1]) > latest_ms + CLOCK_TOLERANCE_MS then
    redis.call('ZADD', 'jobqueue:worker_ends', whole(latest_ms), left[i])
  end
end
return redis.call('HVALS', 'jobqueue:workers')
