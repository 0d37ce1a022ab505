-- Forgets a submission that could not be published, unless somebody has taken it already: then it is cancelled.
local id = ARGV[1]
local record = load(id)
if is_final(record) then
  return {'ok'}
end
redis.call('SET', WITHDRAWN .. id, '1', 'PX', whole(RETENTION_MS))
if not record.state then
  return {'ok'}
end
if record.idempotency ~= '' and redis.call('GET', IDEMPOTENCY .. record.idempotency) == id then
  redis.call('DEL', IDEMPOTENCY .. record.idempotency)
end
if record.token ~= '0' then
  cancel(id, record, 'CANCELLED_BY_USER')
  return {'ok'}
end
redis.call('DEL', EXPERIMENT .. id, MESSAGE .. id)
redis.call('ZREM', ALL, id)
redis.call('ZREM', PROJECT .. record.project, id)
redis.call('ZREM', NAME .. record.name, id)
redis.call('ZREM', OPEN .. record.queue, id)
forget_seen(id, record.queue)
return {'ok'}
