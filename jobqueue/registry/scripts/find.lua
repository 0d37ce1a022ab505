-- Lists records, newest first. ARGV: project, name, prefix of the id, limit, queue: of what is not final.
local project, name, prefix, limit, queue = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local PAGE, MOST_SKIPPED = 100, 10000

local index = ALL
if queue ~= '' then
  index = OPEN .. queue
elseif name ~= '' then
  index = NAME .. name
elseif project ~= '' then
  index = PROJECT .. project
end
local from, to = '-', '+'
if prefix ~= '' then
  from, to = '[' .. prefix, '[' .. prefix .. '\255'
end

local found, expired, seen = {}, {}, 0
while #found < limit and seen < limit + MOST_SKIPPED do
  local ids = redis.call('ZREVRANGEBYLEX', index, to, from, 'LIMIT', seen, PAGE)
  if #ids == 0 then
    break
  end
  for _, id in ipairs(ids) do
    local held_project = redis.call('HGET', EXPERIMENT .. id, 'project')
    local is_named = name == '' or name == redis.call('HGET', EXPERIMENT .. id, 'name')
    if not held_project then
      expired[#expired + 1] = id
    elseif #found < limit and is_named and (project == '' or project == held_project) then
      found[#found + 1] = redis.call('HGETALL', EXPERIMENT .. id)
    end
  end
  seen = seen + #ids
end
for _, id in ipairs(expired) do
  redis.call('ZREM', index, id)
end
return found
