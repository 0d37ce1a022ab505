-- Lists the workers whose time is not over, and forgets the others.
for _, worker_id in ipairs(redis.call('ZRANGEBYSCORE', 'jobqueue:worker_ends', '-inf', whole(now_ms))) do
  redis.call('ZREM', 'jobqueue:worker_ends', worker_id)
  redis.call('HDEL', 'jobqueue:workers', worker_id)
end
return redis.call('HVALS', 'jobqueue:workers')
