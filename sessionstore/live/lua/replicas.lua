-- replicas.lua renews a replica's own lease among the living, or says goodbye, and buries those whose lease has lapsed.
--
-- KEYS  1 replicas (zset: replica -> end of its lease)
-- ARGV  1 replica  2 life of the lease in milliseconds, 0: goodbye
-- Returns  replicas that live, replicas that have just been buried (they died without a goodbye)
local life = tonumber(ARGV[2])
if life > 0 then call('ZADD', KEYS[1], int(now + life), ARGV[1]) else call('ZREM', KEYS[1], ARGV[1]) end
local dead = call('ZRANGEBYSCORE', KEYS[1], '-inf', int(now))
if #dead > 0 then call('ZREMRANGEBYSCORE', KEYS[1], '-inf', int(now)) end
return { call('ZRANGE', KEYS[1], 0, -1), dead }
