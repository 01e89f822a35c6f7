-- cut.lua ends a running answer from outside: its producer is fenced at once, and the event that causes this is kept
-- with the answer until somebody has written both, the partial answer first (settle.lua). If none runs, the event is
-- written here.
--
-- A join takes the hold in the same moment. Who holds the session already is told so; a steal takes it from another one,
-- but only from the hold that its event names, so that the transcript pairs them; an old join that is written again
-- (readmit) changes nothing where its admin has a newer hold.
--
-- KEYS  1-14 of event.lua
-- ARGV  1-6 of event.lua  7 field in ids  8 h  9 c  10 kind: end|join|steal|readmit|other  11 its type
--       of the last but end and other: 12 admin id  13 name  14 message id  16 lease of the hold in milliseconds
--       17 fence that a steal ends, ''
--       15 milliseconds until a keeper settles
-- Returns  OK|DUP epoch seq fence ('' if the admin does not hold the session) | CUT | SETTLE | CHANGED | NOTFOUND | ENDED
--          | ASSISTED
local S = session()
if not S then return { 'NOTFOUND' } end
local kind = ARGV[10]
local joins = kind == 'join' or kind == 'steal' or kind == 'readmit'

-- holder returns the admin who has the session, and the fence; nil if nobody does.
local function holder()
  if S.ow ~= 'human' then return nil end
  local v = call('HMGET', S.key, 'aid', 'fence')
  return v[1], v[2] or ''
end

local admin, fence = holder()
local mine = joins and admin == ARGV[12]
local known = call('HGET', S.ids, ARGV[7])
if known then
  if mine and S.st == 'active' then hold(S, tonumber(ARGV[16])) end
  return { 'DUP', S.e, known, mine and fence or '' }
end
if S.st ~= 'active' then
  if kind == 'end' then return { 'DUP', S.e, int(S.s), '' } end
  return { 'ENDED' }
end
local g = call('HMGET', S.gen, 'state', 'cid')
if g[1] == 'cut' then return { g[2] == ARGV[7] and 'CUT' or 'SETTLE' } end
if mine and kind == 'readmit' then return { 'OK', S.e, emit(S, ARGV[7], ARGV[8], ARGV[9], 0), fence } end
if mine then
  hold(S, tonumber(ARGV[16]))
  return { 'DUP', S.e, call('HGET', S.ids, 'admin:' .. fence) or '0', fence }
end
if joins then
  if admin and kind ~= 'steal' then return { 'ASSISTED' } end
  if kind == 'steal' and ARGV[17] ~= (fence or '') then return { 'CHANGED' } end
  take(S, ARGV[12], ARGV[13], ARGV[14], tonumber(ARGV[16]))
end
if g[1] ~= 'run' then
  return { 'OK', S.e, cause(S, kind, ARGV[7], ARGV[8], ARGV[9]), joins and ARGV[14] or '' }
end
call('HSET', S.gen, 'state', 'cut', 'ck', kind, 'cid', ARGV[7], 'ch', ARGV[8], 'cc', ARGV[9], 'cw', ARGV[11])
call('HDEL', S.gen, 'tok')
call('ZREM', KEYS[3], 'gen:' .. S.id)
call('ZADD', KEYS[3], int(now + tonumber(ARGV[15])), 'cut:' .. S.id)
return { 'CUT' }
