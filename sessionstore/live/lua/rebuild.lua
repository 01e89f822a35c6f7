-- rebuild.lua makes a session anew from what MongoDB has of it, if this Redis has lost it.
--
-- KEYS  1-14 of event.lua
-- ARGV  1-6 of event.lua  7 highest seq in MongoDB  8 window in milliseconds  9 '1' if it is active, else it lives for
--       10 milliseconds  11 epoch in MongoDB  12 number of fields, then name and value of each for the session hash
--       then the number of events, and seq, epoch, field in ids, h, c of each, ascending
--       then the number of questions owed an answer, and id, seq of each
--       then milliseconds until a keeper looks after them
-- Returns  OK | THERE | ACTIVE sid (the user has another one)
local stored = tonumber(ARGV[7])
local S = session()
if S then
  if S.st == 'active' and stored > S.s then roll(S, stored) end
  return { 'THERE' }
end
local active = ARGV[9] == '1'
local other = call('GET', KEYS[14])
if active and other and other ~= ARGV[1] then return { 'ACTIVE', other } end

local at = 12
local function shift()
  at = at + 1
  return ARGV[at]
end
S = { id = ARGV[1], chan = ARGV[2], key = KEYS[5], log = KEYS[6], ids = KEYS[7], ask = KEYS[8], gen = KEYS[9],
  gc = KEYS[10], c = KEYS[11] }
for _ = 1, tonumber(ARGV[12]) do
  local name = shift()
  call('HSET', S.key, name, shift())
end
-- No primary is called '', so load and roll begin a new epoch above all that was ever given.
call('HSET', S.key, 'e', ARGV[11], 's', int(stored), 'd', int(stored), 'inst', '', 'st', active and 'active' or 'ended')
local bytes = 0
for _ = 1, tonumber(shift()) do
  local seq, epoch, id, h, c = shift(), shift(), shift(), shift(), shift()
  call('XADD', S.log, seq .. '-0', 'e', epoch, 'h', h, 'c', c)
  call('HSET', S.ids, id, seq)
  bytes = bytes + #h + #c
end
call('HSET', S.key, 'lb', int(bytes))
load(S)
roll(S, seen)
local owed = {}
for _ = 1, tonumber(shift()) do owed[#owed + 1] = { shift(), shift() } end
local delay = tonumber(shift())
if not active then
  for i = 5, 11 do call('PEXPIRE', KEYS[i], ARGV[10]) end
  return { 'OK' }
end
for i = 1, #owed do owe(S, owed[i][1], owed[i][2], now + delay) end
call('SET', KEYS[14], S.id)
present(S, '', 0, tonumber(ARGV[8]))
changed(S)
return { 'OK' }
