-- acquire.lua makes the caller the producer of the answer that is owed, or of one whose producer has fallen silent.
--
-- KEYS  1-10 of event.lua
-- ARGV  1-6 of event.lua  7 first owed question as read, '' if none  8 id of the answer to it  9 fresh token
--       10 lease in milliseconds
-- Returns  OK gen hash, session hash, header fragments of the questions, chunks, whole ('1': nothing was ever lost of the
--          session) | SETTLE | RETRY | CLEARED | HELD | NOTOWED
--          | ENDED | ASSISTED | NOTFOUND
local S = session()
if not S then
  call('ZREM', KEYS[3], 'ask:' .. ARGV[1], 'gen:' .. ARGV[1])
  return { 'NOTFOUND' }
end
if S.st ~= 'active' then return { 'ENDED' } end
local due = 'gen:' .. S.id
local g = call('HMGET', S.gen, 'state', 'qn', 'tok', 'aid', 'q')

local function answer(seqs)
  local heads = {}
  for seq in string.gmatch(seqs, '%S+') do
    local r = call('XRANGE', S.log, seq .. '-0', seq .. '-0')
    heads[#heads + 1] = r[1] and r[1][2][4] or ''
  end
  call('ZADD', KEYS[3], int(now + tonumber(ARGV[10])), due)
  call('ZREM', KEYS[3], 'ask:' .. S.id)
  local whole = string.match(S.e, '^1%-') and instance() == S.inst
  return { 'OK', call('HGETALL', S.gen), call('HGETALL', S.key), heads, call('LRANGE', S.gc, 0, -1), whole and '1' or '0' }
end

if g[1] == 'cut' then return { 'SETTLE' } end
if S.ow == 'human' then return { 'ASSISTED' } end
if g[1] == 'run' then
  -- Its end had been lost and came back, from MongoDB or from its author: there is nothing left to produce. It has the id
  -- of its first question. The others may have joined it since, and be owed another one: those that it names were taken
  -- off by who brought it (rebuild.lua, readmit.lua).
  if g[4] and call('HEXISTS', S.ids, 'ai:' .. g[4]) == 1 then
    idle(S)
    answered(S, string.match(g[5] or '', '^%S+'))
    return { 'CLEARED' }
  end
  if g[3] == ARGV[9] then return answer(g[2] or '') end -- the reply to this very call was lost
  local deadline = call('ZSCORE', KEYS[3], due)
  if deadline and now < tonumber(deadline) then return { 'HELD' } end
  if g[3] then call('HINCRBY', S.gen, 'tko', 1) end -- its producer fell silent; one that released it did not
  call('HSET', S.gen, 'tok', ARGV[9])
  return answer(g[2] or '')
end

local ask = call('ZRANGE', S.ask, 0, -1, 'WITHSCORES')
if #ask == 0 then
  call('ZREM', KEYS[3], 'ask:' .. S.id)
  return { 'NOTOWED' }
end
if ask[1] ~= ARGV[7] then return { 'RETRY' } end
if call('HEXISTS', S.ids, 'ai:' .. ARGV[8]) == 1 then
  answered(S, ARGV[7])
  return { 'CLEARED' }
end
-- What asks for another answer to something older is a turn of its own; all messages up to the next such are one.
local function alone(seq)
  local r = call('XRANGE', S.log, seq .. '-0', seq .. '-0')
  local type = r[1] and string.match(r[1][2][4], '^"type":"(%l+)"')
  return type == 'regenerate' or type == 'continue' or type == 'retry'
end
local questions, seqs = {}, {}
for i = 1, #ask, 2 do
  local seq = int(tonumber(ask[i + 1]))
  local single = alone(seq)
  if single and #seqs > 0 then break end
  questions[#questions + 1], seqs[#seqs + 1] = ask[i], seq
  if single then break end
end
call('HSET', S.gen, 'aid', ARGV[8], 'state', 'run', 'tok', ARGV[9], 'attempt', '1', 'chunk', '0',
  'q', table.concat(questions, ' '), 'qn', table.concat(seqs, ' '), 'upto', int(S.s), 'calls', '0', 'tko', '0')
call('HDEL', S.gen, 'stop', 'model', 'pe', 'ba', 'sn', 'su', 'ab', 'ck', 'cid', 'ch', 'cc', 'cw')
call('DEL', S.gc)
-- The user has asked to stop before anybody began, and has asked nothing since: it ends as it stands.
if tonumber(seqs[#seqs]) <= tonumber(call('HGET', S.key, 'sq') or 0) then call('HSET', S.gen, 'stop', '1') end
return answer(table.concat(seqs, ' '))
