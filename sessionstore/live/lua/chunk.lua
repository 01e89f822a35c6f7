-- chunk.lua keeps a chunk of the running answer, publishes it, and renews its producer's lease.
--
-- KEYS  1 s  2 gen  3 gc  4 due
-- ARGV  1 session id  2 channel  3 publish|spublish  4 token  5 attempt  6 chunk  7 '1': replaces all before  8 h  9 c
--       10 lease in milliseconds
-- Returns  OK | DUP | GAP | STOP | FENCED
local g = call('HMGET', KEYS[2], 'tok', 'attempt', 'chunk', 'stop')
if g[1] ~= ARGV[4] then return { 'FENCED' } end
local attempt, chunk = tonumber(g[2]), tonumber(g[3])
local a, n, reset = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7] == '1'
if a < attempt or (a == attempt and n <= chunk) then return { 'DUP' } end
if g[4] == '1' then return { 'STOP' } end
if reset then
  if a ~= attempt + 1 or n ~= 1 then return { 'GAP' } end
elseif a ~= attempt or n ~= chunk + 1 then
  return { 'GAP' }
end
call('HSET', KEYS[2], 'attempt', ARGV[5], 'chunk', ARGV[6])
if reset then call('DEL', KEYS[3]) end
call('RPUSH', KEYS[3], ARGV[5] .. ' ' .. ARGV[6] .. ' ' .. ARGV[9])
call('ZADD', KEYS[4], int(now + tonumber(ARGV[10])), 'gen:' .. ARGV[1])
call(ARGV[3], ARGV[2], record(call('HGET', KEYS[1], 'e') or '-', '0', ARGV[8], ARGV[9]))
return { 'OK' }
