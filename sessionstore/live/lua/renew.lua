-- renew.lua prolongs the lease of the answer's producer, also of one that is asked to stop: it has a final to write.
--
-- KEYS  1 gen  2 due
-- ARGV  1 session id  2 token  3 lease in milliseconds
-- Returns  OK | STOP | FENCED
local g = call('HMGET', KEYS[1], 'tok', 'stop')
if g[1] ~= ARGV[2] then return { 'FENCED' } end
call('ZADD', KEYS[2], int(now + tonumber(ARGV[3])), 'gen:' .. ARGV[1])
return { g[2] == '1' and 'STOP' or 'OK' }
