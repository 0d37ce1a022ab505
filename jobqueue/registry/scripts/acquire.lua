-- Asks for the lease of one experiment.
local submission = read_submission(0)
local id, key = submission.id, EXPERIMENT .. submission.id
local worker_id, node_id = ARGV[10], ARGV[11]
local ttl_ms, platform_budget, grant = tonumber(ARGV[12]), tonumber(ARGV[13]), ARGV[14]
local clock = observe(ttl_ms)

local record = load(id)
if not record.state then
  record = rebuild(submission)
end

if (record.message_digest or '') == '' then
  store(id, 'message_digest', submission.digest)
elseif submission.digest ~= '' and submission.digest ~= record.message_digest then
  return answer(clock, {'another'})
end

if is_final(record) then
  return answer(clock, {'final', redis.call('HGETALL', key)})
end
see(id, record.queue, now_ms)

if remaining_ms(record) > tonumber(record.span_ms) + CLOCK_TOLERANCE_MS then
  -- The clock jumped back: a live holder renews within its span, a dead one is over after it.
  record.until_ms = whole(now_ms + tonumber(record.span_ms))
  store(id, 'until_ms', record.until_ms)
end
local wait_ms = unwatched_ms(clock, record)
if wait_ms > 0 then
  if is_leased(record) and record.grant == grant then
    -- The same call again, whose answer was lost on the way.
    return answer(clock, {record.kind, redis.call('HGETALL', key)})
  end
  return answer(clock, {'held', math.ceil(wait_ms)})
end
if is_forgotten(clock, record) then
  return answer(clock, {'quarantined', math.ceil(clock.quarantine_ms)})
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
local token = math.max(tonumber(record.token) + 1, clock.floor_ms + 1, now_ms)
raise_floor(clock, token)
if record.epoch ~= clock.epoch then
  store(id, 'is_whole', '')
end
store(id, 'token', whole(token), 'kind', kind, 'grant', grant, 'is_reasserted', '',
  'worker_id', worker_id, 'node_id', node_id, 'until_ms', whole(now_ms + ttl_ms), 'span_ms', whole(ttl_ms))
return answer(clock, {kind, redis.call('HGETALL', key)})
