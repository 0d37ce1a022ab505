-- Records a submission; a repeated one is answered with the id it got before.
local submission = read_submission()

local function is_same(record)
  return record.spec_digest == '' or record.spec_digest == submission.spec_digest
end

if submission.idempotency ~= '' then
  local older_id = redis.call('GET', IDEMPOTENCY .. submission.idempotency)
  local older = older_id and load(older_id) or {}
  if older.state then
    return {is_same(older) and 'ok' or 'mismatch', older_id}
  end
end

local known = load(submission.id)
if known.state then
  return {is_same(known) and 'ok' or 'mismatch', submission.id}
end

add_record(submission)
redis.call('DEL', WITHDRAWN .. submission.id)
if submission.idempotency ~= '' then
  redis.call('SET', IDEMPOTENCY .. submission.idempotency, submission.id, 'PX', whole(UNUSED_INDEX_MS))
end
return {'ok', submission.id}
