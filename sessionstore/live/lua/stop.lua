-- stop.lua asks the producer of the running answer to stop. The flag is the request, what is published only a hint. If
-- nobody has begun yet what was asked up to now is marked, and whoever begins finds it stopped (acquire.lua).
--
-- KEYS  1 s  2 gen  3 ask
-- ARGV  1 channel  2 publish|spublish  3 answer meant, '' for whichever runs  4 h  5 c
-- Returns  OK | IDLE (no such answer runs, or is owed) | NOTFOUND
local v = call('HMGET', KEYS[1], 'e', 's')
local epoch = v[1]
if not epoch then return { 'NOTFOUND' } end
local g = call('HMGET', KEYS[2], 'state', 'aid')
if g[1] ~= 'run' and g[1] ~= 'cut' and ARGV[3] == '' and call('ZCARD', KEYS[3]) > 0 then
  call('HSET', KEYS[1], 'sq', v[2])
  return { 'OK' }
end
if g[1] ~= 'run' or (ARGV[3] ~= '' and ARGV[3] ~= g[2]) then return { 'IDLE' } end
call('HSET', KEYS[2], 'stop', '1')
call(ARGV[2], ARGV[1], record(epoch, '0', ARGV[4], ARGV[5]))
return { 'OK' }
