-- activate.lua reopens an ended session of its user: its numbering goes on, its end is taken back, the time in which it
-- was active before stays counted. The session that the user is in is ended in the same step if that is asked for, or
-- if its window is over.
--
-- What an end needs is asked for and given in the next try: with ENDING and the reason the event, with RUNS also what
-- was shown of the answer that runs there. RUNS stops the answer, so that it does not grow until the next try.
--
-- KEYS  1-14 of event.lua, of the session to reopen  15 s  16 log  17 ids  18 ask  19 gen  20 gc  21 c of the user's
--       present session  22 beat  23 what the user has spent
-- ARGV  1-6 of event.lua  7 user id  8 the user's session as read, '' if none  9 its channel  10 '1': end it
--       11 window in milliseconds  12-14 field in ids, h, c of the session_started that says that it goes on
--       15-17 the same of the other's session_ended, '' if not made yet  18 reason that this one gives
--       19 token, 20 attempt and 21 chunk of the answer that runs there, as read, 26 how many calls it had
--       22-24 field in ids, h, c of its partial, '' if nothing was shown  25 what it cost, as in final.lua
-- Returns  OK hash | THERE hash (it is active, or was by this call) | RETRY sid | SETTLE sid | ENDING sid reason | RUNS sid
--          | ACTIVE sid | NOTFOUND
local S = session()
if not S or call('HGET', S.key, 'u') ~= ARGV[7] then return { 'NOTFOUND' } end
local cur = call('GET', KEYS[14]) or ''
-- Or this very call has reopened it before, its reply was lost, and somebody has ended it since: theirs is the last word.
if S.st == 'active' or call('HEXISTS', S.ids, ARGV[12]) == 1 then return { 'THERE', call('HGETALL', S.key) } end
if cur ~= ARGV[8] then return { 'RETRY', cur } end
local window = tonumber(ARGV[11])

local C = cur ~= '' and cur ~= S.id and load({ id = cur, chan = ARGV[9], key = KEYS[15], log = KEYS[16],
  ids = KEYS[17], ask = KEYS[18], gen = KEYS[19], gc = KEYS[20], c = KEYS[21] })
if C and C.st == 'active' then
  local deadline = tonumber(call('ZSCORE', KEYS[13], cur) or now)
  local over = now > deadline and not kept(C) and not paused(KEYS[22])
  if not over and ARGV[10] ~= '1' then return { 'ACTIVE', cur } end
  local g = call('HMGET', C.gen, 'state', 'tok', 'attempt', 'chunk', 'q', 'aid', 'calls', 'sn')
  if g[1] == 'cut' then return { 'SETTLE', cur } end
  local reason = over and 'expired' or 'replaced'
  if ARGV[18] ~= reason then return { 'ENDING', cur, reason } end
  local running = g[1] == 'run'
  if running and ((g[2] or '') ~= ARGV[19] or g[3] ~= ARGV[20] or g[4] ~= ARGV[21]
    or (g[7] or '0') .. ' ' .. (g[8] or '0') ~= ARGV[26]) then
    call('HSET', C.gen, 'stop', '1')
    return { 'RUNS', cur }
  end
  local high = seen
  seen = 0 -- it is of the session to reopen
  if running and call('HEXISTS', C.ids, 'ai:' .. (g[6] or '')) == 0 then usage(C, KEYS[23], ARGV[25], 0) end
  if running and ARGV[22] ~= '' and call('HEXISTS', C.ids, ARGV[22]) == 0 then
    emit(C, ARGV[22], ARGV[23], ARGV[24], 1)
    answered(C, g[5])
  end
  finish(C, ARGV[15], ARGV[16], ARGV[17], over and deadline - window or now)
  seen = high
end

-- Opening it again is its user's doing: if Redis loses it now, the window counts from here.
call('HSET', S.key, 'st', 'active', 'is', int(now), 'la', int(now), 'ow', 'ai')
call('HDEL', S.key, 'et', 'hw', 'fence')
S.st, S.ow = 'active', 'ai'
for i = 5, 10 do call('PERSIST', KEYS[i]) end -- leases of sockets lapse also here
emit(S, ARGV[12], ARGV[13], ARGV[14], 0)
changed(S)
call('SET', KEYS[14], S.id)
present(S, '', 0, window)
return { 'OK', call('HGETALL', S.key) }
