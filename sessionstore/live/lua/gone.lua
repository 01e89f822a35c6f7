-- gone.lua removes closed sockets, and with them those whose leases have lapsed. The last one starts the window.
--
-- KEYS  1 c  2 on  3 live  4 due
-- ARGV  1 session id  2 window in milliseconds  3.. connections
-- Returns  OK sockets left
local own = call('ZREM', KEYS[1], unpack(ARGV, 3))
call('ZREMRANGEBYSCORE', KEYS[1], '-inf', int(now))
local last = call('ZREVRANGE', KEYS[1], 0, 0, 'WITHSCORES')
if own == 0 then return { 'OK', int(call('ZCARD', KEYS[1])) } end
local from = tonumber(last[2] or now)
if last[2] then call('ZADD', KEYS[2], int(from), ARGV[1]) else call('ZREM', KEYS[2], ARGV[1]) end
local over = int(from + tonumber(ARGV[2]))
call('ZADD', KEYS[3], over, ARGV[1])
call('ZADD', KEYS[4], over, 'end:' .. ARGV[1])
return { 'OK', int(call('ZCARD', KEYS[1])) }
