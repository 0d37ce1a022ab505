-- Stands before the scripts that only workers call: how much of the registry's time is known to have gone by.
--
-- A lease has run out when its length has been *watched*, not when the server's clock says so: that may step. Whoever calls says
-- how much time has gone by, on a monotonic clock of its own, since it heard the registry's time last; as long as the two
-- agree, the clock was watched. ARGV ends with: era, since when the caller has watched, what it heard last, milliseconds since
-- then, the highest token that it knows of; the numbers are 0 before it has heard anything.
local LONGEST_TOLERANCE_MS, TOLERANCES_PER_LEASE = 3000, 12
local QUARANTINE_MARGIN_MS = 1000
-- Then those who watched until `seen_ms` are gone, and whoever has watched since starts anew.
local UNSEEN_MS = 30000

-- Returns how long, of the time since `from_ms`, the clock was watched.
local function watched_since(clock, from_ms)
  local own_ms = now_ms - math.max(from_ms, clock.since_ms)
  local earlier_ms = math.min(clock.seen_ms, clock.since_ms) - math.max(from_ms, clock.watched_ms)
  return math.max(own_ms, 0) + math.max(earlier_ms, 0)
end

-- Milliseconds until the lease or the back-off is over; not above 0 when it is. A back-off may be cut short by a step.
local function unwatched_ms(clock, record)
  if OFF.clock or not is_leased(record) then
    return remaining_ms(record)
  end
  local span_ms = tonumber(record.span_ms)
  return span_ms - watched_since(clock, tonumber(record.until_ms) - span_ms)
end

-- Notes what the caller knows of the clock; returns the clock, and in it since when the caller has watched, and how long the
-- quarantine goes on.
local function observe(ttl_ms)
  local clock, last = load_clock(), #ARGV
  local era, since_ms, heard_ms = ARGV[last - 4], tonumber(ARGV[last - 3]), tonumber(ARGV[last - 2])
  local elapsed_ms, floor_ms = tonumber(ARGV[last - 1]), tonumber(ARGV[last])
  local tolerance_ms = math.min(LONGEST_TOLERANCE_MS, ttl_ms / TOLERANCES_PER_LEASE)
  local is_witness = era == clock.era

  local stepped_ms = now_ms - clock.seen_ms
  if is_witness then
    stepped_ms = now_ms - heard_ms - elapsed_ms
  elseif stepped_ms > 0 then
    stepped_ms = 0 -- a stranger cannot tell a step from a silence
  end
  clock.since_ms = is_witness and since_ms or now_ms
  if math.abs(stepped_ms) > tolerance_ms then
    clock.era = whole(tonumber(clock.era) + 1)
    clock.watched_ms, clock.seen_ms, clock.since_ms = now_ms, now_ms, now_ms
    clock.epoch_ms = math.min(clock.epoch_ms, now_ms)
  elseif clock.since_ms <= clock.seen_ms + tolerance_ms then
    clock.seen_ms = now_ms
    clock.since_ms = math.min(clock.since_ms, clock.watched_ms)
  elseif is_witness and now_ms - clock.seen_ms > UNSEEN_MS then
    clock.watched_ms, clock.seen_ms = clock.since_ms, now_ms
  end
  clock.quarantine_ms = ttl_ms + QUARANTINE_MARGIN_MS - watched_since(clock, clock.epoch_ms)
  if clock.quarantine_ms <= 0 then
    clock.settled = '1'
  end
  clock.floor_ms = math.max(clock.floor_ms, floor_ms)
  redis.call('HSET', CLOCK, 'era', clock.era, 'watched_ms', whole(clock.watched_ms), 'seen_ms', whole(clock.seen_ms),
    'epoch_ms', whole(clock.epoch_ms), 'settled', clock.settled, 'floor_ms', whole(clock.floor_ms))
  return clock
end

local function raise_floor(clock, token)
  if token > clock.floor_ms then
    clock.floor_ms = token
    redis.call('HSET', CLOCK, 'floor_ms', whole(token))
  end
end

-- Records what only a message, or a holder, still knew; returns the record.
local function rebuild(submission)
  add_record(submission, '')
  trim_indexes()
  if redis.call('EXISTS', WITHDRAWN .. submission.id) == 1 then
    store(submission.id, 'cancel_reason', 'CANCELLED_BY_USER')
  end
  return load(submission.id)
end

-- Answers with what the caller is to say the next time, and the answer itself.
local function answer(clock, reply)
  return {clock.era, whole(clock.since_ms), whole(now_ms), whole(clock.floor_ms), reply}
end
