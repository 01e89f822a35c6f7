-- done.lua takes a batch off the WAL after MongoDB has it. It does nothing unless the partition's keeper and the Redis
-- primary are those of the read: a batch read from a primary that has lost its tail must not mark anything durable.
--
-- KEYS  1 inst  2 wal  3 lease of the keeper  4 doc | of every session 7: s  log  ids  ask  gen  gc  c
-- ARGV  1 token of the keeper  2 inst of the read  3 bytes that a log may keep of what is durable  4 milliseconds that
--       an ended session stays  5 number of sessions | of every session 4: id  highest seq in the batch (0: none)
--       seq and st of the document that was written ('' if none was) | the rest: ids of the entries
-- Returns  OK | LOST
if call('GET', KEYS[3]) ~= ARGV[1] or (call('GET', KEYS[1]) or '') ~= ARGV[2] then return { 'LOST' } end
local limit, ttl, sessions = tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])

-- written tells whether the session's document is in MongoDB as it is now.
local function written(S, seq, st)
  if seq == int(S.s) and st == S.st then
    call('ZREM', KEYS[4], S.id)
    return true
  end
  return not call('ZSCORE', KEYS[4], S.id)
end

for i = 0, sessions - 1 do
  local k, a = 4 + 7 * i, 5 + 4 * i
  local S = load({ id = ARGV[a + 1], key = KEYS[k + 1], log = KEYS[k + 2] })
  if not S then
    call('ZREM', KEYS[4], ARGV[a + 1])
  else
    local seq = tonumber(ARGV[a + 2])
    if seq > S.d then
      S.d = seq
      call('HSET', S.key, 'd', int(seq))
    end
    local saved = written(S, ARGV[a + 3], ARGV[a + 4])
    if saved and S.st == 'ended' and S.d >= S.s then
      for j = 1, 7 do call('PEXPIRE', KEYS[k + j], ttl) end
    else
      trim(S, limit)
    end
  end
end

local first = 6 + 4 * sessions
for i = first, #ARGV, 500 do call('XDEL', KEYS[2], unpack(ARGV, i, math.min(i + 499, #ARGV))) end
return { 'OK' }
