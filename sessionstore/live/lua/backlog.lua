-- backlog.lua says how much a partition has for MongoDB and has not delivered. It changes nothing.
--
-- KEYS  1 lease of the keeper  2 wal  3 dead
-- ARGV  1 token of the keeper
-- Returns  LOST | OK entries age of the oldest in milliseconds, dead letters
if call('GET', KEYS[1]) ~= ARGV[1] then return { 'LOST' } end
local head = call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
local age = head and math.max(now - tonumber(string.match(head[1], '^%d+')), 0) or 0
return { 'OK', int(call('XLEN', KEYS[2])), int(age), int(call('XLEN', KEYS[3])) }
