-- stop.lua asks the producer of the running answer to stop. The flag is the request, what is published only a hint.
--
-- KEYS  1 s  2 gen
-- ARGV  1 channel  2 publish|spublish  3 answer meant, '' for whichever runs  4 h  5 c
-- Returns  OK | IDLE (no such answer runs) | NOTFOUND
local epoch = call('HGET', KEYS[1], 'e')
if not epoch then return { 'NOTFOUND' } end
local g = call('HMGET', KEYS[2], 'state', 'aid')
if g[1] ~= 'run' or (ARGV[3] ~= '' and ARGV[3] ~= g[2]) then return { 'IDLE' } end
call('HSET', KEYS[2], 'stop', '1')
call(ARGV[2], ARGV[1], record(epoch, '0', ARGV[4], ARGV[5]))
return { 'OK' }
