-- book.lua counts a call of a provider before its request leaves, unless its user has no tokens left today, or has asked
-- to stop. The caller says which one it is, so that booking twice counts once, and what those before it cost, which have
-- ended.
--
-- KEYS  1 gen  2 s  3 what the user has spent
-- ARGV  1 token  2 number of the call  3 model  4 estimated prompt tokens  5 what the calls before it cost: tokens in out
--       cached estimated  6 tokens that the user may spend a day, 0: any number  7 what the answer is about, for its
--       partial
-- Returns  OK | BUDGET milliseconds until there are more | STOP | FENCED
local g = call('HMGET', KEYS[1], 'tok', 'calls', 'attempt', 'chunk', 'stop')
if g[1] ~= ARGV[1] then return { 'FENCED' } end
if tonumber(ARGV[2]) <= tonumber(g[2] or 0) then return { 'OK' } end
if g[5] == '1' then return { 'STOP' } end
local limit = tonumber(ARGV[6])
if limit > 0 and call('HGET', KEYS[2], 'free') ~= '1' then
  local v = call('HMGET', KEYS[3], 'd', 'n')
  local today = tonumber(v[1] or 0) >= math.floor(now / 86400000) and tonumber(v[2] or 0) or 0
  if today + tonumber(string.match(ARGV[5], '^%d+')) >= limit then
    return { 'BUDGET', int(86400000 - now % 86400000) }
  end
end
call('HSET', KEYS[1], 'calls', ARGV[2], 'model', ARGV[3], 'pe', ARGV[4], 'ba', (g[3] or '1') .. ' ' .. (g[4] or '0'),
  'sn', int(tonumber(ARGV[2]) - 1), 'su', ARGV[5], 'ab', ARGV[7])
return { 'OK' }
