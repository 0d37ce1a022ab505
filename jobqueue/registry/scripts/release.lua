-- Ends an attempt without a final state.
local id, token = ARGV[1], ARGV[2]
local record = load(id)
if record.token == token and not is_leased(record) and not is_final(record) then
  return {'ok'} -- the same call again
end
if not may_write(record, token) then
  return refuse(record, token)
end
give_back(id, record, {
  reason = ARGV[3], detail = ARGV[4], exit_code = ARGV[5], last_lines = ARGV[6],
  counter = ARGV[7], delay_ms = tonumber(ARGV[8]),
})
return {'ok'}
