-- restore.lua puts the id of an event that is only in MongoDB back into the ids of its session.
--
-- KEYS  1-8 of event.lua
-- ARGV  1-6 of event.lua  7 field in ids  8 seq
-- Returns  OK | NOTFOUND
local S = session()
if not S then return { 'NOTFOUND' } end
local seq = tonumber(ARGV[8])
call('HSETNX', S.ids, ARGV[7], int(seq))
-- MongoDB has more than this Redis: events were lost here.
if S.st == 'active' and seq > S.s then roll(S, seq) end
return { 'OK' }
