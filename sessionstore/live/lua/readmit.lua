-- readmit.lua writes an event again that its author holds and this Redis has lost. The token it was written under is
-- lost, too, so none is asked for.
--
-- KEYS  1-14 of event.lua  15 what its user has spent
-- ARGV  1-6 of event.lua  7 field in ids  8 h  9 c  10 counts as a message (1|0)  11 questions it answers, ''
--       12 message id, if it is an answer  13 what it cost, as in final.lua  14 response time  15 fence of the hold that it ends, ''
-- Returns  OK|DUP epoch seq | NOTFOUND | ENDED | HELD (another answer to one of its questions is being produced)
local S = session()
if not S then return { 'NOTFOUND' } end
local known = call('HGET', S.ids, ARGV[7])
if known then return { 'DUP', S.e, known } end
if S.st ~= 'active' then return { 'ENDED' } end
if ARGV[12] ~= '' and S.ow ~= 'human' then
  -- Who asked may have been quicker, and have asked again: then its questions are here, and another answer to them is
  -- on its way or there. A question that is here and owes an answer waits for this one.
  local g = call('HMGET', S.gen, 'aid', 'state', 'q')
  local running = g[2] == 'run' and g[1] ~= ARGV[12] and ' ' .. (g[3] or '') .. ' ' or ''
  local all, any = true, false
  for q in string.gmatch(ARGV[11], '%S+') do
    if string.find(running, ' ' .. q .. ' ', 1, true) then return { 'HELD' } end
    any = true
    if call('HEXISTS', S.ids, 'user:' .. q) == 0 or call('ZSCORE', S.ask, q) then all = false end
  end
  if any and all then return { 'DUP', S.e, int(S.s) } end
end
local seq = emit(S, ARGV[7], ARGV[8], ARGV[9], tonumber(ARGV[10]))
if ARGV[12] ~= '' then
  usage(S, KEYS[15], ARGV[13], tonumber(ARGV[14]))
  local g = call('HMGET', S.gen, 'aid', 'state')
  if g[1] == ARGV[12] and g[2] == 'run' then idle(S) end
  answered(S, ARGV[11])
  for q in string.gmatch(ARGV[11], '%S+') do -- those that are not here yet are not owed an answer when they come
    if call('HEXISTS', S.ids, 'user:' .. q) == 0 then call('HSET', S.ids, 'answered:' .. q, seq) end
  end
end
if ARGV[15] ~= '' and S.ow == 'human' and call('HGET', S.key, 'fence') == ARGV[15] then back(S) end
return { 'OK', S.e, seq }
