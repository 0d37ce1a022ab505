-- Tells what the messages of queues ask for, and forgets the queues of which nothing is known any more. ARGV: the queues, none for all.
local found = {}
for _, queue in ipairs(#ARGV > 0 and ARGV or redis.call('ZRANGE', 'jobqueue:needs', 0, -1)) do
  local amounts = redis.call('HGETALL', 'jobqueue:need:' .. queue)
  if #amounts > 0 then
    found[#found + 1], found[#found + 2] = queue, amounts
  else
    redis.call('ZREM', 'jobqueue:needs', queue)
  end
end
return found
