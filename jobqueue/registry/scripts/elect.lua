-- Gives a role to a worker, unless another one has it. ARGV: role, worker id, milliseconds.
local key = 'jobqueue:role:' .. ARGV[1]
local holder = redis.call('GET', key)
if holder and holder ~= ARGV[2] then
  return 0
end
redis.call('SET', key, ARGV[2], 'PX', ARGV[3])
return 1
