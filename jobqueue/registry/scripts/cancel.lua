-- Puts a tombstone.
local record = load(ARGV[1])
if not record.state then
  return {'unknown'}
end
return {'ok', cancel(ARGV[1], record)}
