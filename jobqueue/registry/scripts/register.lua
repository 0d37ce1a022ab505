-- Records submissions, all or none; a repeated one is answered with the id it got before.
local new, new_by_id, new_by_key, ids = {}, {}, {}, {}

local function digest_of(id)
  return new_by_id[id] and new_by_id[id].spec_digest or redis.call('HGET', EXPERIMENT .. id, 'spec_digest')
end

local function find_older(submission)
  local key = submission.idempotency
  local older_id = key ~= '' and (new_by_key[key] or redis.call('GET', IDEMPOTENCY .. key))
  local digest = older_id and digest_of(older_id)
  if digest then
    return older_id, digest
  end
  return submission.id, digest_of(submission.id)
end

for index = 1, #ARGV / SUBMISSION_LENGTH do
  local submission = read_submission(index - 1)
  local id, digest = find_older(submission)
  if not digest then
    new[#new + 1] = submission
    new_by_id[id] = submission
    if submission.idempotency ~= '' then
      new_by_key[submission.idempotency] = id
    end
  elseif digest ~= '' and digest ~= submission.spec_digest then
    return {'mismatch', id}
  end
  ids[index] = id
end

local epoch = load_clock().epoch
for _, submission in ipairs(new) do
  add_record(submission, epoch)
  redis.call('DEL', WITHDRAWN .. submission.id)
  if submission.idempotency ~= '' then
    redis.call('SET', IDEMPOTENCY .. submission.idempotency, submission.id, 'PX', whole(UNUSED_INDEX_MS))
  end
end
trim_indexes()
return {'ok', unpack(ids)}
