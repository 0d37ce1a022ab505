-- Keeps what operators publish, all or none, unless some of it was replaced since it was seen.
-- ARGV, for each: the operator, what was seen, empty where nothing was, and the document.
for i = 1, #ARGV, 3 do
  if (redis.call('HGET', 'jobqueue:directory', ARGV[i]) or '') ~= ARGV[i + 1] then
    return 0
  end
end
for i = 1, #ARGV, 3 do
  redis.call('HSET', 'jobqueue:directory', ARGV[i], ARGV[i + 2])
end
return 1
