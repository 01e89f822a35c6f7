-- hold.lua renews an admin's hold of a session.
--
-- KEYS  1 s  2 due
-- ARGV  1 session id  2 admin id  3 fence  4 lease in milliseconds
-- Returns  OK | NOTHELD | NOTFOUND | ENDED
local v = call('HMGET', KEYS[1], 'st', 'ow', 'aid', 'fence')
if not v[1] then return { 'NOTFOUND' } end
if v[1] ~= 'active' then return { 'ENDED' } end
if v[2] ~= 'human' or v[3] ~= ARGV[2] or v[4] ~= ARGV[3] then return { 'NOTHELD' } end
call('ZADD', KEYS[2], int(now + tonumber(ARGV[4])), 'hold:' .. ARGV[1])
return { 'OK' }
