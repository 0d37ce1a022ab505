-- Notes that experiments were seen now. ARGV: their ids.
for _, id in ipairs(ARGV) do
  redis.call('ZADD', SEEN, 'XX', whole(now_ms), id)
end
return {'ok'}
