-- publish.lua sends an event that is not stored: it has no seq and moves no cursor.
--
-- KEYS  1 s
-- ARGV  1 channel  2 publish|spublish  3 h  4 c
-- Returns  OK | NOTFOUND | ENDED
local v = call('HMGET', KEYS[1], 'e', 'st')
if not v[1] then return { 'NOTFOUND' } end
if v[2] ~= 'active' then return { 'ENDED' } end
call(ARGV[2], ARGV[1], record(v[1], '0', ARGV[3], ARGV[4]))
return { 'OK' }
