-- letter.lua puts a dead letter back at the end of the WAL, or drops it. A letter that is not there any more is left
-- alone, so that a repeated call has no second effect.
--
-- KEYS  1 dead (stream)  2 wal  3 doc  4 s of the letter's session
-- ARGV  1 retry|drop  2 id of the letter
-- Returns  OK | GONE
local entry = call('XRANGE', KEYS[1], ARGV[2], ARGV[2])[1]
if not entry then return { 'GONE' } end
local f = {}
for i = 1, #entry[2], 2 do f[entry[2][i]] = entry[2][i + 1] end
if ARGV[1] == 'retry' then
  call('XADD', KEYS[2], '*', 'k', f.k or '', 'e', f.e or '', 's', f.s or '', 'h', f.h or '', 'c', f.c or '')
elseif f.s and f.s == call('HGET', KEYS[4], 's') then
  -- Nothing later will take durable past it: a client would keep it, and Redis a session that has ended, for ever.
  call('HSET', KEYS[4], 'd', f.s)
  call('ZADD', KEYS[3], int(now), f.k)
end
call('XDEL', KEYS[1], ARGV[2])
return { 'OK' }
