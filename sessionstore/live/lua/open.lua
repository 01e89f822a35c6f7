-- open.lua puts a connection into its user's active session, or makes one.
--
-- Keys must be known before the call, so the caller reads the user's session first and names it; if it has changed
-- meanwhile the answer is RETRY. What is only sometimes needed (a data key, the events of a start or an end) is asked
-- for with EXPIRED or NEW and given in the next try.
--
-- KEYS  1-14 of event.lua, of the session that the user is believed to have  15 s  16 log  17 ids  18 c of the one that
--       may be made  19 beat
-- ARGV  1-6 of event.lua  7 the user's session as read, '' if none  8 session that the client was in, ''
--       9 epoch and 10 seq of its position  11 connection  12 lease and 13 window in milliseconds  14 '1': only a new
--       session will do  15 user id  16 user name  17 new session's id  18 its channel  19 its wrapped data key, '' if not
--       made yet  20 model  21-23 field in ids, h, c of its session_started  24-26 the same of the old one's
--       session_ended ('' if not made yet)
-- Returns  RETRY sid | EXPIRED | NEW | TAKEN | SETTLE | ACTIVE sid | CREATED hash
--          | RESUMED hash recovered(1|0) sockets
local cur = call('GET', KEYS[14]) or ''
if cur ~= ARGV[7] then return { 'RETRY', cur } end
local lease, window = tonumber(ARGV[12]), tonumber(ARGV[13])

-- readable says whether every durable event after the client's position is still in the log.
local function readable(S)
  local epoch, seq = ARGV[9], tonumber(ARGV[10])
  if ARGV[8] ~= S.id or epoch ~= S.e or seq > S.s then return '0' end
  if seq == S.s then return '1' end
  local first = int(seq + 1) .. '-0'
  return #call('XRANGE', S.log, first, first) == 1 and '1' or '0'
end

local S = cur ~= '' and session()
local over -- when S has ended, if its window is over
if S and S.st == 'active' then
  local deadline = tonumber(call('ZSCORE', KEYS[13], cur) or now)
  if now <= deadline or kept(S) or paused(KEYS[19]) then
    if ARGV[14] == '1' then return { 'ACTIVE', cur } end
    roll(S, seen)
    present(S, ARGV[11], lease, window)
    return { 'RESUMED', call('HGETALL', S.key), readable(S), int(call('ZCOUNT', S.c, int(now), '+inf')) }
  end
  if call('HGET', S.gen, 'state') == 'cut' then return { 'SETTLE' } end
  if ARGV[24] == '' or ARGV[19] == '' then return { 'EXPIRED' } end
  over = deadline - window
end

if ARGV[19] == '' then return { 'NEW' } end
-- This very call has made it before, its reply was lost, and somebody has ended it since: it does not begin again.
if call('EXISTS', KEYS[15]) == 1 then return { 'TAKEN' } end
if over then finish(S, ARGV[24], ARGV[25], ARGV[26], over) end
local N = { id = ARGV[17], chan = ARGV[18], key = KEYS[15], log = KEYS[16], ids = KEYS[17], c = KEYS[18] }
call('SET', KEYS[14], N.id)
call('HSET', N.key, 'e', '1-' .. fresh, 's', '0', 'st', 'active', 'inst', instance(), 'u', ARGV[15], 'un', ARGV[16],
  'key', ARGV[19], 'model', ARGV[20], 'ow', 'ai', 'd', '0', 'ct', int(now), 'is', int(now), 'la', int(now), 'mc', '0')
load(N)
seen = 0
emit(N, ARGV[21], ARGV[22], ARGV[23], 0)
changed(N)
present(N, ARGV[11], lease, window)
return { 'CREATED', call('HGETALL', N.key) }
