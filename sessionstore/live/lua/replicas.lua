-- replicas.lua renews a replica's own lease among the living, or says goodbye, and buries those whose lease has lapsed.
--
-- KEYS  1 replicas (zset: replica -> end of its lease)  2 buried (hash: replica -> id of the call that buried it)
-- ARGV  1 replica  2 life of the lease in milliseconds, 0: goodbye  3 id of this call
-- Returns  replicas that live, replicas that this call has buried (they died without a goodbye), also if the reply was
--          lost and it comes again
local life = tonumber(ARGV[2])
if life > 0 then call('ZADD', KEYS[1], int(now + life), ARGV[1]) else call('ZREM', KEYS[1], ARGV[1]) end
local lapsed = call('ZRANGEBYSCORE', KEYS[1], '-inf', int(now))
for i = 1, #lapsed do call('HSET', KEYS[2], lapsed[i], ARGV[3]) end
if #lapsed > 0 then
  call('PEXPIRE', KEYS[2], '60000') -- far longer than a call is sent again for
  call('ZREMRANGEBYSCORE', KEYS[1], '-inf', int(now))
end
local dead, buried = {}, call('HGETALL', KEYS[2])
for i = 1, #buried, 2 do
  if buried[i + 1] == ARGV[3] then dead[#dead + 1] = buried[i] end
end
return { call('ZRANGE', KEYS[1], 0, -1), dead }
