-- final.lua ends the answer with its durable event, by which its questions are answered.
--
-- KEYS  1-14 of event.lua  15 what its user has spent
-- ARGV  1-6 of event.lua  7 field in ids  8 h  9 c  10 token  11 attempt and 12 chunk that were written last
--       13 what it cost: tokens in out cached calls  14 response time in milliseconds, 0 if unknown
--       15 model and 16 id of the conversation that its provider remembers, '' if it keeps none, 17 up to which seq
-- Returns  OK|DUP epoch seq more(1|0: further questions are owed an answer) | NOTFOUND | ENDED | FENCED | GAP
local S = session()
if not S then return { 'NOTFOUND' } end
local known = call('HGET', S.ids, ARGV[7])
local g = call('HMGET', S.gen, 'tok', 'attempt', 'chunk', 'q')
if known then
  -- Not written by this producer, or it would hold no token: its end came back from elsewhere (acquire.lua).
  if S.st == 'active' and g[1] and g[1] == ARGV[10] then
    idle(S)
    answered(S, string.match(g[4] or '', '^%S+'))
  end
  return { 'DUP', S.e, known, call('ZCARD', S.ask) > 0 and '1' or '0' }
end
if S.st ~= 'active' then return { 'ENDED' } end
if g[1] ~= ARGV[10] then return { 'FENCED' } end
if g[2] ~= ARGV[11] or g[3] ~= ARGV[12] then return { 'GAP' } end
local seq = emit(S, ARGV[7], ARGV[8], ARGV[9], 1)
usage(S, KEYS[15], ARGV[13], tonumber(ARGV[14]))
if ARGV[16] ~= '' then call('HSET', S.key, 'cv:' .. ARGV[15], ARGV[17] .. ' ' .. seq .. ' ' .. ARGV[16]) end
idle(S)
return { 'OK', S.e, seq, answered(S, g[4]) > 0 and '1' or '0' }
