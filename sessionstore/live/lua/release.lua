-- release.lua gives up the lease of the answer's producer: it can be stolen at once.
--
-- KEYS  1 gen  2 due
-- ARGV  1 session id  2 token  3 how many calls have ended  4 what they cost: tokens in out cached estimated
-- Returns  OK | FENCED
local g = call('HMGET', KEYS[1], 'tok', 'state')
if g[1] ~= ARGV[2] or g[2] ~= 'run' then return { 'FENCED' } end
call('HSET', KEYS[1], 'sn', ARGV[3], 'su', ARGV[4])
call('HDEL', KEYS[1], 'tok')
call('ZADD', KEYS[2], int(now), 'gen:' .. ARGV[1])
return { 'OK' }
