-- rebuild.lua makes a session anew from what MongoDB has of it, if this Redis has lost it.
--
-- KEYS  1-14 of event.lua
-- ARGV  1-6 of event.lua  7 highest seq in MongoDB  8 window in milliseconds  9 '1' if it is active, else it lives for
--       10 milliseconds  11 epoch in MongoDB  12 number of fields, then name and value of each for the session hash
--       then the number of events, and seq, epoch, field in ids, h, c of each, ascending
--       then the number of questions owed an answer, and id, seq of each
--       then milliseconds until a keeper looks after them, lease of a hold, and how long help keeps the session
--       then the questions that its answers name, space-separated
-- Returns  OK | THERE | ACTIVE sid (the user has another one)
local stored = tonumber(ARGV[7])
local active = ARGV[9] == '1'
local S = session()
local there = S ~= nil
local other = call('GET', KEYS[14])
if not there and active and other and other ~= ARGV[1] then return { 'ACTIVE', other } end
if there and S.st ~= 'active' then return { 'THERE' } end

local at = 12
local function shift()
  at = at + 1
  return ARGV[at]
end
if there then
  at = at + 2 * tonumber(ARGV[12])
else
  S = { id = ARGV[1], chan = ARGV[2], key = KEYS[5], log = KEYS[6], ids = KEYS[7], ask = KEYS[8], gen = KEYS[9],
    gc = KEYS[10], c = KEYS[11] }
  for _ = 1, tonumber(ARGV[12]) do
    local name, value = shift(), shift()
    if value ~= '' then call('HSET', S.key, name, value) end -- a field that is there is one that is known
  end
  -- No primary is called '', so roll begins a new epoch above all that was ever given.
  call('HSET', S.key, 'e', ARGV[11], 's', int(stored), 'd', int(stored), 'inst', '', 'lb', '0',
    'st', active and 'active' or 'ended')
  load(S)
end

-- Another one may have rebuilt it from an older state of MongoDB: what that lacked is added, as far as the log's order
-- allows, and known by its id in any case.
local tip = call('XREVRANGE', S.log, '+', '-', 'COUNT', 1)
local top = tip[1] and tonumber(string.match(tip[1][1], '^%d+')) or 0
local added, grown, hole = {}, false, nil
for _ = 1, tonumber(shift()) do
  local seq, epoch, id, h, c = shift(), shift(), shift(), shift(), shift()
  if call('HSETNX', S.ids, id, seq) == 1 then added[seq] = true end
  if tonumber(seq) > top then
    call('XADD', S.log, seq .. '-0', 'e', epoch, 'h', h, 'c', c)
    S.lb, grown = S.lb + #h + #c, true
  elseif added[seq] and #call('XRANGE', S.log, seq .. '-0', seq .. '-0') == 0 then
    hole, grown = tonumber(seq), true
  end
end
-- A log has no holes: what lies before one is in MongoDB, as the missing event is, and is read from there.
if hole then
  local before = call('XRANGE', S.log, '-', int(hole) .. '-0')
  for i = 1, #before do S.lb = S.lb - #before[i][2][4] - #before[i][2][6] end
  call('XTRIM', S.log, 'MINID', int(hole + 1) .. '-0')
end
call('HSET', S.key, 'lb', int(math.max(S.lb, 0)))
if there and grown then S.inst = '' end -- readers are beyond what was added: a new epoch makes them read again
local owed = {}
for _ = 1, tonumber(shift()) do owed[#owed + 1] = { shift(), shift() } end
local delay, lease, help = tonumber(shift()), tonumber(shift()), tonumber(shift())
if active then
  roll(S, math.max(seen, stored))
  for i = 1, #owed do
    -- Its answer may have come back before it (readmit.lua).
    local open = call('HEXISTS', S.ids, 'answered:' .. owed[i][1]) == 0
    if added[owed[i][2]] and open and S.ow ~= 'human' then owe(S, owed[i][1], owed[i][2], now + delay) end
  end
end
if there then
  if S.st == 'active' and grown then answered(S, shift()) end
  return { 'THERE' }
end
if not active then
  roll(S, seen)
  for i = 5, 11 do call('PEXPIRE', KEYS[i], ARGV[10]) end
  return { 'OK' }
end
if S.ow == 'human' then hold(S, lease) end
if S.ow == 'waiting' then call('HSET', S.key, 'hw', int(now + help)) end
call('SET', KEYS[14], S.id)
present(S, '', 0, tonumber(ARGV[8]))
changed(S)
return { 'OK' }
