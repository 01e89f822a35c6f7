-- life.lua follows event.lua in the scripts that begin or end something: answers, holds, sessions. It is apart, because
-- every function costs the frequent scripts time. KEYS and ARGV are those of event.lua.

-- answered takes the questions (space-separated) off what is owed. Returns how many are left, which are due now.
local function answered(S, questions)
  for q in string.gmatch(questions or '', '%S+') do call('ZREM', S.ask, q) end
  local left = call('ZCARD', S.ask)
  if left > 0 then call('ZADD', KEYS[3], int(now), 'ask:' .. S.id) else call('ZREM', KEYS[3], 'ask:' .. S.id) end
  return left
end

-- usage books what an answer cost ("tokens in out cached calls"), also against its user's day (key spent), and how long
-- it took.
local function usage(S, spent, cost, response)
  local names, i, tokens = { 'tk', 'ti', 'to', 'tc', 'cl' }, 0, '0'
  for n in string.gmatch(cost, '%d+') do
    i = i + 1
    if i == 1 then tokens = n end
    if n ~= '0' then call('HINCRBY', S.key, names[i], n) end
  end
  if tokens ~= '0' and call('HGET', S.key, 'free') ~= '1' then
    local day = math.floor(now / 86400000)
    if tonumber(call('HGET', spent, 'd') or 0) < day then call('HSET', spent, 'd', int(day), 'n', '0') end
    call('HINCRBY', spent, 'n', tokens)
    call('PEXPIRE', spent, '172800000')
  end
  if response <= 0 then return end
  call('HINCRBY', S.key, 'rs', response)
  call('HINCRBY', S.key, 'rn', 1)
  local most = tonumber(call('HGET', S.key, 'rm') or 0)
  if response > most then call('HSET', S.key, 'rm', int(response)) end
end

-- idle forgets the running answer: nobody may write a chunk of it any more.
local function idle(S)
  call('HSET', S.gen, 'state', 'done')
  call('HDEL', S.gen, 'tok', 'stop', 'ck', 'cid', 'ch', 'cc', 'cw')
  call('DEL', S.gc)
  call('ZREM', KEYS[3], 'gen:' .. S.id, 'cut:' .. S.id)
end

-- hold prolongs the hold of whoever has the session by so many milliseconds from now.
local function hold(S, lease) call('ZADD', KEYS[3], int(now + lease), 'hold:' .. S.id) end

-- take gives the session to a person. What was owed is the person's to answer.
local function take(S, admin, name, fence, lease)
  call('HSET', S.key, 'ow', 'human', 'aid', admin, 'an', name, 'fence', fence, 'asst', '1')
  call('HDEL', S.key, 'hw')
  call('DEL', S.ask)
  call('ZREM', KEYS[3], 'ask:' .. S.id, 'help:' .. S.id)
  hold(S, lease)
  S.ow = 'human'
  changed(S)
end

-- back gives the session back to the AI. What was asked of the person is not owed. Who held it last stays known.
local function back(S)
  call('HSET', S.key, 'ow', 'ai')
  call('HDEL', S.key, 'fence')
  call('ZREM', KEYS[3], 'hold:' .. S.id)
  S.ow = 'ai'
  changed(S)
end

-- finish writes the session's end, at the given time, and takes it off every list of the living.
local function finish(S, id, h, c, at)
  local seq = emit(S, id, h, c, 0)
  local v = call('HMGET', S.key, 'iv', 'is', 'ct')
  local interval = (v[2] or v[3] or int(at)) .. '-' .. int(at)
  if v[1] and v[1] ~= '' then interval = v[1] .. ',' .. interval end
  call('HSET', S.key, 'st', 'ended', 'et', int(at), 'iv', interval)
  S.st = 'ended'
  if S.ow == 'human' then back(S) end
  if call('EXISTS', S.gen) == 1 then idle(S) end
  call('DEL', S.ask, S.c)
  call('ZREM', KEYS[12], S.id)
  call('ZREM', KEYS[13], S.id)
  call('ZREM', KEYS[3], 'end:' .. S.id, 'ask:' .. S.id, 'hold:' .. S.id, 'help:' .. S.id)
  if call('GET', KEYS[14]) == S.id then call('DEL', KEYS[14]) end
  changed(S)
  return seq
end

-- cause writes the event that ends a running answer from outside.
local function cause(S, kind, id, h, c)
  if kind == 'end' then return finish(S, id, h, c, now) end
  local seq = emit(S, id, h, c, 0)
  changed(S)
  return seq
end

-- kept says why a session may not expire: an answer runs, a person holds it, or help waits (for a time).
local function kept(S)
  if S.ow == 'human' then return true end
  local state = call('HGET', S.gen, 'state')
  if state == 'run' then return true end
  if S.ow ~= 'waiting' then return false end
  local untilTime = call('HGET', S.key, 'hw')
  return untilTime and now < tonumber(untilTime)
end

-- present gives a socket its lease and moves the session's deadline with it. Without a socket ('') the window runs from
-- now, unless somebody is there.
local function present(S, conn, lease, window)
  if conn == '' then
    if not call('ZSCORE', KEYS[13], S.id) then
      call('ZADD', KEYS[13], int(now + window), S.id)
      call('ZADD', KEYS[3], int(now + window), 'end:' .. S.id)
    end
    return
  end
  local till = now + lease
  call('ZADD', S.c, int(till), conn)
  call('PEXPIREAT', S.c, int(till + 1)) -- all leases are equally long: with the newest the others have lapsed
  call('ZADD', KEYS[12], int(till), S.id)
  call('ZADD', KEYS[13], int(till + window), S.id)
  call('ZADD', KEYS[3], int(till + window), 'end:' .. S.id)
end

-- paused says whether nobody's absence counts now: no keeper has been here for an outage's time, because Redis or all
-- replicas were away, or that is less than a window ago (keep.lua). OUTAGE is filled in where scripts are loaded.
local function paused(beat)
  local b = call('HMGET', beat, 'at', 'until')
  return (b[1] and now - tonumber(b[1]) > OUTAGE) or (b[2] and now < tonumber(b[2]))
end
