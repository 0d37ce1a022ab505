-- Asks for the lease of one experiment.
local submission = read_submission(0)
local id, key = submission.id, EXPERIMENT .. submission.id
local worker_id, node_id = ARGV[9], ARGV[10]
local ttl_ms, platform_budget, grant = tonumber(ARGV[11]), tonumber(ARGV[12]), ARGV[13]

local record = load(id)
if not record.state then
  add_record(submission)
  trim_indexes()
  if redis.call('EXISTS', WITHDRAWN .. id) == 1 then
    store(id, 'cancel_reason', 'CANCELLED_BY_USER')
  end
  record = load(id)
end

if is_final(record) then
  return {'final', redis.call('HGETALL', key)}
end
see(id, now_ms)

local wait_ms = remaining_ms(record)
if wait_ms > tonumber(record.span_ms) + CLOCK_TOLERANCE_MS then
  -- The clock jumped back: a live holder renews within its span, a dead one is over after it.
  wait_ms = tonumber(record.span_ms)
  store(id, 'until_ms', whole(now_ms + wait_ms))
end
if wait_ms > 0 then
  if is_leased(record) and record.grant == grant then
    -- The same call again, whose answer was lost on the way.
    return {record.kind, redis.call('HGETALL', key)}
  end
  return {'held', wait_ms}
end

if is_leased(record) then
  give_back(id, record, {
    reason = 'WORKER_LOST', detail = record.worker_id, exit_code = '', last_lines = '',
    counter = 'platform_failures', delay_ms = 0,
  })
  record = load(id)
end

local kind = 'granted'
if record.cancel_reason ~= '' then
  kind = 'cancelled'
elseif tonumber(record.platform_failures) >= platform_budget then
  kind = 'exhausted'
end
if kind == 'granted' then
  store(id, 'state', 'PREPARING', 'attempt', whole(tonumber(record.attempt) + 1))
end
store(id, 'token', whole(math.max(tonumber(record.token) + 1, now_ms)), 'kind', kind, 'grant', grant,
  'worker_id', worker_id, 'node_id', node_id, 'until_ms', whole(now_ms + ttl_ms), 'span_ms', whole(ttl_ms))
return {kind, redis.call('HGETALL', key)}
