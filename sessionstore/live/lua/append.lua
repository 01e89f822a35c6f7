-- append.lua adds one durable event.
--
-- KEYS  1-8 of event.lua, also 9 for an admin
-- ARGV  1-6 of event.lua  7 field in ids  8 h  9 c  10 counts as a message (1|0)  11 question id if an answer is to be
--       owed, else ''  12 milliseconds until a keeper looks after it  13 sealed name, if the session has none yet, else ''
--       14 model of the session from now on, else ''  15 milliseconds that a request for help keeps the session, else ''
--       16 admin who writes, '' if none does  17 lease of the hold in milliseconds
--       18 '1': what the session costs from now on does not count against its user's day
-- Returns  OK epoch seq owed(1|0) | DUP epoch seq owed | NOTFOUND | ENDED | SETTLE | ASSISTED | NOTHELD
local S = session()
if not S then return { 'NOTFOUND' } end
local question = ARGV[11]
local known = call('HGET', S.ids, ARGV[7])
if known then
  local owed = question ~= '' and call('ZSCORE', S.ask, question)
  return { 'DUP', S.e, known, owed and '1' or '0' }
end
if S.st ~= 'active' then return { 'ENDED' } end
local admin = ARGV[16]
if admin ~= '' then
  if S.ow ~= 'human' then return { 'NOTHELD' } end
  if call('HGET', S.key, 'aid') ~= admin then return { 'ASSISTED' } end
  if call('HGET', S.gen, 'state') == 'cut' then return { 'SETTLE' } end -- the join itself comes first
end
local seq = emit(S, ARGV[7], ARGV[8], ARGV[9], tonumber(ARGV[10]))
if admin ~= '' then call('ZADD', KEYS[3], int(now + tonumber(ARGV[17])), 'hold:' .. S.id) end
if ARGV[13] ~= '' and call('HSETNX', S.key, 'nm', ARGV[13]) == 1 then changed(S) end
if ARGV[14] ~= '' then
  call('HSET', S.key, 'model', ARGV[14])
  changed(S)
end
if ARGV[15] ~= '' then
  call('HSET', S.key, 'help', '1', 'hw', int(now + tonumber(ARGV[15])))
  if S.ow == 'ai' then
    call('HSET', S.key, 'ow', 'waiting')
    S.ow = 'waiting'
  end
  changed(S)
end
if ARGV[18] == '1' then call('HSET', S.key, 'free', '1') end
local owed = '0'
-- What Redis lost may come back in any order: the answer may be here before its question (readmit.lua).
if question ~= '' and S.ow ~= 'human' and call('HEXISTS', S.ids, 'answered:' .. question) == 0 then
  owe(S, question, seq, now + tonumber(ARGV[12]))
  owed = '1'
end
return { 'OK', S.e, seq, owed }
