-- cut.lua ends a running answer from outside: its producer is fenced at once, and the event that causes this is kept
-- with the answer until somebody has written both, the partial answer first (settle.lua). If none runs, the event is
-- written here.
--
-- KEYS  1-14 of event.lua
-- ARGV  1-6 of event.lua  7 field in ids  8 h  9 c  10 kind: end|join|other  11 its type  12 admin id and 13 name, and
--       14 message id, of a join  15 milliseconds until a keeper settles
-- Returns  OK|DUP epoch seq | CUT | SETTLE | NOTFOUND | ENDED | ASSISTED
local S = session()
if not S then return { 'NOTFOUND' } end
local kind = ARGV[10]
local known = call('HGET', S.ids, ARGV[7])
if known then return { 'DUP', S.e, known } end
if S.st ~= 'active' then
  if kind == 'end' then return { 'DUP', S.e, int(S.s) } end
  return { 'ENDED' }
end
local g = call('HMGET', S.gen, 'state', 'cid')
if g[1] == 'cut' then return { g[2] == ARGV[7] and 'CUT' or 'SETTLE' } end
if kind == 'join' then
  if S.ow == 'human' and call('HGET', S.key, 'aid') ~= ARGV[12] then return { 'ASSISTED' } end
  take(S, ARGV[12], ARGV[13], ARGV[14])
end
if g[1] ~= 'run' then return { 'OK', S.e, cause(S, kind, ARGV[7], ARGV[8], ARGV[9]) } end
call('HSET', S.gen, 'state', 'cut', 'ck', kind, 'cid', ARGV[7], 'ch', ARGV[8], 'cc', ARGV[9], 'cw', ARGV[11])
call('HDEL', S.gen, 'tok')
call('ZREM', KEYS[3], 'gen:' .. S.id)
call('ZADD', KEYS[3], int(now + tonumber(ARGV[15])), 'cut:' .. S.id)
return { 'CUT' }
