-- Notes what a message of a queue asks for: the least of each amount counts. ARGV: queue, milliseconds, names and amounts.
local key = 'jobqueue:need:' .. ARGV[1]
local is_new = redis.call('EXISTS', key) == 0
for i = 3, #ARGV, 2 do
  local known = redis.call('HGET', key, ARGV[i])
  if not known or tonumber(ARGV[i + 1]) < tonumber(known) then
    redis.call('HSET', key, ARGV[i], ARGV[i + 1])
  end
end
if is_new then
  redis.call('PEXPIRE', key, ARGV[2])
  redis.call('ZADD', 'jobqueue:needs', 0, ARGV[1])
  redis.call('PEXPIRE', 'jobqueue:needs', ARGV[2])
end
return 1
