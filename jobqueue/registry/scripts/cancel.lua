-- Puts a tombstone. ARGV: id, reason.
local record = load(ARGV[1])
if not record.state then
  return {'unknown'}
end
return {'ok', cancel(ARGV[1], record, ARGV[2])}
