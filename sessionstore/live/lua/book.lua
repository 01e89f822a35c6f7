-- book.lua counts a call of a provider before its request leaves. The caller says which one it is, so that booking
-- twice counts once.
--
-- KEYS  1 gen
-- ARGV  1 token  2 number of the call  3 model
-- Returns  OK | FENCED
local g = call('HMGET', KEYS[1], 'tok', 'calls')
if g[1] ~= ARGV[1] then return { 'FENCED' } end
if tonumber(ARGV[2]) > tonumber(g[2] or 0) then
  call('HSET', KEYS[1], 'calls', ARGV[2], 'model', ARGV[3])
end
return { 'OK' }
