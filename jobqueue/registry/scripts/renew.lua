-- Holds on to a lease; answers with the reason of the tombstone that lies. A live holder gets back a lease that was forgotten.
-- ARGV: a submission, token, milliseconds, attempt, worker id, node id, whether the lease is in doubt; without a worker id
-- nothing but the id is known.
local submission = read_submission(0)
local id = submission.id
local token, ttl, attempt, worker_id, node_id, is_in_doubt = unpack(ARGV, 10, 15)
local ttl_ms = tonumber(ttl)
local clock = observe(ttl_ms)
local record = load(id)

if not may_write(record, token) then
  if worker_id == '' or not is_lost_grant(record, token) then
    return answer(clock, refuse(record, token))
  end
  if is_forgotten(clock, record) then
    if is_in_doubt == '1' then
      -- A newer holder may not have said so yet.
      return answer(clock, {'forgotten'})
    end
  elseif is_leased(record) and unwatched_ms(clock, record) > 0 then
    return answer(clock, refuse(record, token))
  end
  if not record.state then
    record = rebuild(submission)
  end
  store(id, 'state', 'RUNNING', 'token', token, 'worker_id', worker_id, 'node_id', node_id, 'kind', 'granted', 'grant', '',
    'attempt', whole(math.max(tonumber(record.attempt), tonumber(attempt))), 'epoch', clock.epoch, 'is_reasserted', '1')
  raise_floor(clock, tonumber(token))
end
see(id, record.queue, now_ms)
store(id, 'until_ms', whole(now_ms + ttl_ms), 'span_ms', whole(ttl_ms))
return answer(clock, {'ok', record.cancel_reason})
