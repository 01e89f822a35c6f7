-- touch.lua renews the leases of a replica's sockets in one session. It never adds one: a socket that is not there was
-- dropped (or Redis forgot it), and its replica opens it again if it still lives.
--
-- KEYS  1 c  2 on  3 live  4 due
-- ARGV  1 session id  2 lease and 3 window in milliseconds  4.. connections
-- Returns  OK missing connections
local missing, till = {}, now + tonumber(ARGV[2])
local found = false
for i = 4, #ARGV do
  if call('ZSCORE', KEYS[1], ARGV[i]) then
    call('ZADD', KEYS[1], 'XX', int(till), ARGV[i])
    found = true
  else
    missing[#missing + 1] = ARGV[i]
  end
end
if found then
  local over = till + tonumber(ARGV[3])
  call('PEXPIREAT', KEYS[1], int(till + 1)) -- see present in life.lua
  call('ZADD', KEYS[2], int(till), ARGV[1])
  call('ZADD', KEYS[3], int(over), ARGV[1])
  call('ZADD', KEYS[4], int(over), 'end:' .. ARGV[1])
end
return { 'OK', missing }
