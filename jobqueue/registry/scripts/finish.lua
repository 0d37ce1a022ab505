-- Records the final state.
local id, token, state, reason = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local record = load(id)
if is_final(record) and record.token == token and record.state == state and record.reason == reason then
  return {'ok'} -- the same call again
end
if not may_write(record, token) then
  return refuse(record, token)
end
make_final(id, record, {
  state = state, reason = reason, detail = ARGV[5], exit_code = ARGV[6], last_lines = ARGV[7],
})
return {'ok'}
