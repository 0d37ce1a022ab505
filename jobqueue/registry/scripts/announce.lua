-- Says that a worker is there until its time is over, and answers whether it and its node are to drain.
-- ARGV: worker id, JSON, milliseconds, node id.
local clock = observe(tonumber(ARGV[3]))
redis.call('HSET', 'jobqueue:workers', ARGV[1], ARGV[2])
redis.call('HSET', 'jobqueue:worker_spans', ARGV[1], ARGV[3])
redis.call('ZADD', 'jobqueue:worker_ends', whole(now_ms + tonumber(ARGV[3])), ARGV[1])
return answer(clock, redis.call('HMGET', 'jobqueue:drains', ARGV[1], ARGV[4]))
