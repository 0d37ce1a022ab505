-- Notes that experiments were seen now. ARGV: their ids.
for _, id in ipairs(ARGV) do
  if redis.call('ZSCORE', SEEN, id) then
    see(id, redis.call('HGET', EXPERIMENT .. id, 'queue'), now_ms)
  end
end
return {'ok'}
