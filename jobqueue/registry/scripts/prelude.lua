-- Stands before every script: the registry's clock, the names of the keys, and the steps that scripts share.
--
-- An experiment is a hash; an empty field means "none". `until_ms` ends a lease while `worker_id` is set, a back-off otherwise;
-- `span_ms` is how long that was meant to be, so that a clock which jumped back cannot stretch it. `kind` is the answer that
-- gave the lease, `grant` the call that asked for it, `epoch` the one of `clock` in which the record is whole. The indexes are
-- ordered by id, which is the order of submission. A line before this file has the numbers of `rules.py`, and says which
-- protections are off: none, but in tests.

local EXPERIMENT, MESSAGE, WITHDRAWN = 'jobqueue:experiment:', 'jobqueue:message:', 'jobqueue:withdrawn:'
local ALL, PROJECT, NAME = 'jobqueue:experiments', 'jobqueue:project:', 'jobqueue:name:'
local CLOCK, IDEMPOTENCY = 'jobqueue:clock', 'jobqueue:idempotency:'
-- What is not final: by request queue; by the time when it was seen last, in all and, with `:` and its name, in each queue.
local OPEN, SEEN = 'jobqueue:open:', 'jobqueue:seen'

local DAY_MS = 24 * 3600 * 1000
local UNUSED_INDEX_MS = 365 * DAY_MS
local CLOCK_TOLERANCE_MS = 500

local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
if OFF.skew then
  now_ms = now_ms + tonumber(redis.call('GET', 'jobqueue:skew_ms') or '0')
end

-- Lua prints large numbers with an exponent.
local function whole(value)
  return string.format('%.0f', value)
end

-- Notes that somebody has, or will have, an open experiment before their eyes.
local function see(id, queue, at_ms)
  redis.call('ZADD', SEEN, whole(at_ms), id)
  redis.call('ZADD', SEEN .. ':' .. queue, whole(at_ms), id)
end

local function forget_seen(id, queue)
  redis.call('ZREM', SEEN, id)
  redis.call('ZREM', SEEN .. ':' .. queue, id)
end

local function load(id)
  local flat, record = redis.call('HGETALL', EXPERIMENT .. id), {}
  for i = 1, #flat, 2 do
    record[flat[i]] = flat[i + 1]
  end
  return record
end

local function store(id, ...)
  redis.call('HSET', EXPERIMENT .. id, ...)
end

-- What was added to each index by this script.
local added = {}

local function add_to_index(key, id)
  redis.call('ZADD', key, 0, id)
  added[key] = (added[key] or 0) + 1
end

-- Takes more out of every index that was added to, if the records of the oldest have expired, so that none can only grow.
local function trim_indexes()
  for key, count in pairs(added) do
    for _, oldest in ipairs(redis.call('ZRANGE', key, 0, count)) do
      if redis.call('EXISTS', EXPERIMENT .. oldest) == 0 then
        redis.call('ZREM', key, oldest)
      end
    end
    redis.call('PEXPIRE', key, whole(UNUSED_INDEX_MS))
  end
end

-- What is known of this server and its clock.
--
-- `run_id` is new after every start of a server, so also after a failover. An `epoch` begins when something may have been
-- forgotten: all with a wiped memory, the last moments with a server that came back. It is `settled` one lease later.
-- `era` changes when the clock was seen to step; `watched_ms` to `seen_ms` is the time for which it is known not to have stepped.
-- `floor_ms` is the highest token that is known of.
local function load_clock()
  local run_id = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)') or ''
  local found = redis.call('HMGET', CLOCK,
    'run_id', 'epoch', 'epoch_ms', 'settled', 'era', 'watched_ms', 'seen_ms', 'floor_ms')
  local clock = {run_id = run_id, epoch = found[2], epoch_ms = tonumber(found[3]), settled = found[4], era = found[5],
    watched_ms = tonumber(found[6]), seen_ms = tonumber(found[7]), floor_ms = tonumber(found[8])}
  if found[1] == run_id then
    return clock
  end
  -- With an append-only file a server of this machine comes back with all that it has ever confirmed.
  local is_whole = IS_LOCAL and found[1] and string.find(redis.call('INFO', 'persistence'), 'aof_enabled:1', 1, true)
  if not is_whole then
    clock.epoch, clock.epoch_ms, clock.settled = run_id .. ':' .. whole(now_ms), now_ms, ''
    clock.era, clock.watched_ms, clock.seen_ms = whole(now_ms * 1000), now_ms, now_ms
    clock.floor_ms = clock.floor_ms or 0
  end
  redis.call('HSET', CLOCK, 'run_id', run_id, 'epoch', clock.epoch, 'epoch_ms', whole(clock.epoch_ms),
    'settled', clock.settled, 'era', clock.era, 'watched_ms', whole(clock.watched_ms), 'seen_ms', whole(clock.seen_ms),
    'floor_ms', whole(clock.floor_ms))
  return clock
end

-- Tells whether somebody may hold the lease of an experiment without the registry knowing; `record` may be an empty one.
local function is_forgotten(clock, record)
  return clock.settled ~= '1' and record.epoch ~= clock.epoch and not OFF.quarantine
end

-- `epoch` is empty for what is rebuilt from a message: it was not registered with this server, as far as it remembers.
local function add_record(submission, epoch)
  local id = submission.id
  store(id,
    'submission', submission.json, 'queue', submission.queue, 'project', submission.project, 'name', submission.name,
    'spec_digest', submission.spec_digest, 'message_digest', submission.digest, 'idempotency', submission.idempotency,
    'state', 'QUEUED', 'attempt', '0', 'token', '0', 'worker_id', '', 'node_id', '', 'phase', '',
    'reason', '', 'detail', '', 'exit_code', '', 'last_lines', '', 'progress', '', 'history', '',
    'started_at', '', 'finished_at', '', 'cancel_reason', '', 'user_failures', '0', 'platform_failures', '0',
    'until_ms', '0', 'span_ms', '0', 'kind', '', 'grant', '', 'epoch', epoch, 'is_whole', epoch ~= '' and '1' or '', 'is_reasserted', '')
  if submission.message ~= '' then
    redis.call('SET', MESSAGE .. id, submission.message)
  end
  redis.call('ZADD', OPEN .. submission.queue, 0, id)
  see(id, submission.queue, now_ms)
  add_to_index(ALL, id)
  add_to_index(PROJECT .. submission.project, id)
  if submission.name ~= '' then
    add_to_index(NAME .. submission.name, id)
  end
end

local SUBMISSION_LENGTH = 9

-- The arguments of `register`, `index` submissions further on, and the first ones of `acquire`.
local function read_submission(index)
  local at = index * SUBMISSION_LENGTH
  return {
    id = ARGV[at + 1], json = ARGV[at + 2], message = ARGV[at + 3], project = ARGV[at + 4], name = ARGV[at + 5],
    spec_digest = ARGV[at + 6], idempotency = ARGV[at + 7], queue = ARGV[at + 8],
    digest = ARGV[at + 9],
  }
end

local function is_final(record)
  return record.finished_at ~= nil and record.finished_at ~= ''
end

local function is_leased(record)
  return record.worker_id ~= nil and record.worker_id ~= ''
end

-- Milliseconds until the lease or the back-off is over; not above 0 when it is.
local function remaining_ms(record)
  return tonumber(record.until_ms) - now_ms
end

-- Tells whether the holder of this token may write.
local function may_write(record, token)
  return is_leased(record) and not is_final(record) and (record.token == token or OFF.token)
end

-- Tells whether this token was granted, for all that is known, and then forgotten.
local function is_lost_grant(record, token)
  return not is_final(record) and tonumber(record.token or '0') < tonumber(token)
end

local function refuse(record, token)
  if is_lost_grant(record, token) and is_forgotten(load_clock(), record) then
    return {'forgotten'}
  end
  return {'superseded', record.token or '', record.state or ''}
end

local function lengthen_history(record, reason, detail)
  local history = record.history ~= '' and cjson.decode(record.history) or {}
  history[#history + 1] = {attempt = record.attempt, token = record.token, reason = reason, detail = detail}
  while #history > HISTORY_LENGTH do
    table.remove(history, 1)
  end
  return cjson.encode(history)
end

-- Ends an attempt without a final state; `ended.counter` is the field that counts it, or empty.
local function give_back(id, record, ended)
  if record.kind == 'granted' then
    if ended.counter ~= '' then
      redis.call('HINCRBY', EXPERIMENT .. id, ended.counter, 1)
    end
    store(id, 'reason', ended.reason, 'detail', ended.detail, 'exit_code', ended.exit_code,
      'last_lines', ended.last_lines, 'history', lengthen_history(record, ended.reason, ended.detail))
  end
  store(id, 'state', 'QUEUED', 'phase', '', 'worker_id', '', 'node_id', '', 'kind', '', 'grant', '',
    'until_ms', whole(now_ms + ended.delay_ms), 'span_ms', whole(ended.delay_ms))
  see(id, record.queue, now_ms + ended.delay_ms)
end

local function make_final(id, record, ended)
  store(id, 'state', ended.state, 'reason', ended.reason, 'detail', ended.detail, 'exit_code', ended.exit_code,
    'last_lines', ended.last_lines, 'phase', '', 'worker_id', '', 'node_id', '', 'kind', '', 'grant', '',
    'until_ms', '0', 'span_ms', '0', 'finished_at', whole(now_ms))
  redis.call('PEXPIRE', EXPERIMENT .. id, whole(RETENTION_MS))
  redis.call('DEL', MESSAGE .. id)
  redis.call('ZREM', OPEN .. record.queue, id)
  forget_seen(id, record.queue)
  if record.idempotency ~= '' then
    redis.call('PEXPIRE', IDEMPOTENCY .. record.idempotency, whole(RETENTION_MS))
  end
end

-- Puts a tombstone, unless one lies; final at once where nobody holds the lease. Returns the state.
local function cancel(id, record, reason)
  if is_final(record) then
    return record.state
  end
  if record.cancel_reason ~= '' then
    reason = record.cancel_reason
  end
  store(id, 'cancel_reason', reason)
  if is_leased(record) and remaining_ms(record) > 0 then
    return record.state
  end
  make_final(id, record, {state = 'CANCELLED', reason = reason, detail = '', exit_code = '', last_lines = ''})
  return 'CANCELLED'
end
