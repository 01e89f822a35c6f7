-- event.lua follows prelude.lua in the scripts that write events. It holds the one way to write one.
--
-- KEYS  1 inst  2 wal  3 due  4 doc | 5 s  6 log  7 ids  8 ask | 9 gen  10 gc | 11 c  12 on  13 live  14 u
--       A script may leave out trailing keys that it does not use.
-- ARGV  1 session id  2 channel  3 publish|spublish  4 fresh random text  5 highest seq the caller has fanned out
--       6 milliseconds until the session's document is due after an ordinary event
local pub, fresh, seen, docEvery = ARGV[3], ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])

-- load reads what every event needs to know of a session; nil if there is no such session.
local function load(S)
  local v = call('HMGET', S.key, 'e', 's', 'st', 'inst', 'ow', 'd', 'lb', 'mc', 'fd')
  if not v[1] then return nil end
  S.e, S.s, S.st, S.inst, S.ow = v[1], tonumber(v[2]), v[3], v[4], v[5]
  S.d, S.lb, S.mc, S.fd = tonumber(v[6]) or 0, tonumber(v[7]) or 0, tonumber(v[8]) or 0, tonumber(v[9]) or 0
  return S
end

-- session is the session that KEYS and ARGV name, nil if absent.
local function session()
  return load({ id = ARGV[1], chan = ARGV[2], key = KEYS[5], log = KEYS[6], ids = KEYS[7], ask = KEYS[8],
    gen = KEYS[9], gc = KEYS[10], c = KEYS[11] })
end

-- instance names the Redis primary. Nobody has written it: then this is one that has lost everything.
local function instance()
  local inst = call('GET', KEYS[1])
  if not inst then
    inst = 'lua-' .. fresh
    call('SET', KEYS[1], inst)
  end
  return inst
end

-- roll begins a new epoch if this Redis may have lost acknowledged events: it is another primary than the one the
-- session was last written on, or somebody has seen a higher seq. The jump keeps lost numbers from being given
-- again.
local function roll(S, high)
  local inst = instance()
  if inst == S.inst and high <= S.s then return end
  S.s = math.max(S.s, high, S.d) + 1000
  S.e = int((tonumber(string.match(S.e, '^%d+')) or 0) + 1) .. '-' .. fresh
  S.inst = inst
  call('HSET', S.key, 'e', S.e, 's', int(S.s), 'inst', inst)
end

-- changed has the session's document written soon, and the feed told at once ('!'); ordinary events only see to it that
-- the document is written some time, and tell the feed once a second (emit).
local function changed(S)
  call('ZADD', KEYS[4], 'LT', int(now), S.id)
  call(pub, KEYS[4], '!' .. S.id)
end

-- emit writes the event (id, h, c) and returns its seq. The caller has checked DUP, then ENDED, then FENCED, in
-- this order. counts is 1 for what a person or the AI said. The first write is one that a full Redis refuses, so
-- that a script that may not use the reserve has written nothing when it fails.
local function emit(S, id, h, c, counts)
  roll(S, seen)
  S.s, S.lb, S.mc = S.s + 1, S.lb + #h + #c, S.mc + counts
  local seq = int(S.s)
  call('XADD', S.log, seq .. '-0', 'e', S.e, 'h', h, 'c', c)
  call('XADD', KEYS[2], '*', 'k', S.id, 'e', S.e, 's', seq, 'h', h, 'c', c)
  call('HSET', S.ids, id, seq)
  local tell = now >= S.fd + 1000 -- who is told reads a second later, so it misses nothing of that second
  if tell then S.fd = now end
  call('HSET', S.key, 's', seq, 'mc', int(S.mc), 'lb', int(S.lb), 'fd', int(S.fd))
  if counts == 1 then call('HSET', S.key, 'la', int(now)) end -- activity is what somebody said
  call('ZADD', KEYS[4], 'NX', int(now + docEvery), S.id)
  call(pub, S.chan, record(S.e, seq, h, c))
  if tell then call(pub, KEYS[4], S.id) end
  return seq
end

-- owe notes that the AI owes an answer to the question, and when a keeper should look after it.
local function owe(S, question, seq, at)
  call('ZADD', S.ask, 'NX', seq, question)
  call('ZADD', KEYS[3], 'NX', int(at), 'ask:' .. S.id)
end

-- trim drops the oldest records that are in MongoDB until the log fits into limit bytes. The newest one stays.
local function trim(S, limit)
  local lb, keep, from = S.lb, nil, '-'
  while lb > limit do
    local r = call('XRANGE', S.log, from, '+', 'COUNT', 32)
    for i = 1, #r do
      local seq = tonumber(string.match(r[i][1], '^%d+'))
      if lb <= limit or seq > S.d or seq >= S.s then
        from = nil
        break
      end
      lb, keep = lb - #r[i][2][4] - #r[i][2][6], seq + 1
      from = int(keep) .. '-0'
    end
    if not from or #r < 32 then break end
  end
  if not keep then return end
  call('XTRIM', S.log, 'MINID', int(keep) .. '-0')
  call('HSET', S.key, 'lb', int(math.max(lb, 0)))
  S.lb = lb
end
