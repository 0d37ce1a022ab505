-- Records where an attempt is. ARGV: id, token, state, phase, whether there is progress, progress, the states it may come from.
local id, token, state, phase, has_progress, progress = unpack(ARGV, 1, 6)
local record = load(id)
if not may_write(record, token) then
  return refuse(record, token)
end
if record.state ~= state then
  local allowed = record.is_reasserted == '1' -- where it really was is not known
  for i = 7, #ARGV do
    allowed = allowed or record.state == ARGV[i]
  end
  if not allowed then
    return {'illegal', record.state}
  end
  store(id, 'state', state, 'phase', phase, 'is_reasserted', '')
elseif phase ~= '' then
  store(id, 'phase', phase)
end
if state == 'RUNNING' and record.started_at == '' then
  store(id, 'started_at', whole(now_ms))
end
if has_progress == '1' then
  store(id, 'progress', progress)
end
return {'ok'}
