-- leave.lua gives the session back to the AI: its holder leaves, or nobody has renewed the hold in time.
--
-- KEYS  1-10 of event.lua  11 beat
-- ARGV  1-6 of event.lua  7 field in ids  8 h  9 c of the admin_leave  10 admin id, '' if the hold is to lapse  11 fence
--       12 life of a hold in milliseconds
-- Returns  OK|DUP epoch seq | SETTLE | NOTYET | NOTHELD | NOTFOUND | ENDED
local S = session()
local lapse, due = ARGV[10] == '', 'hold:' .. ARGV[1]
if not S then
  call('ZREM', KEYS[3], due)
  return { 'NOTFOUND' }
end
local known = call('HGET', S.ids, ARGV[7])
if known then return { 'DUP', S.e, known } end
if S.st ~= 'active' then
  call('ZREM', KEYS[3], due)
  return { 'ENDED' }
end
if call('HGET', S.gen, 'state') == 'cut' then return { 'SETTLE' } end
if S.ow ~= 'human' then
  call('ZREM', KEYS[3], due)
  return { 'NOTHELD' }
end
local v = call('HMGET', S.key, 'aid', 'fence')
if v[2] ~= ARGV[11] or not lapse and v[1] ~= ARGV[10] then return { 'NOTHELD' } end
if lapse then
  if now < tonumber(call('ZSCORE', KEYS[3], due) or now) then return { 'NOTYET' } end
  -- Who could not renew it, because Redis was away, is given the time to do so.
  local grace = tonumber(call('HGET', KEYS[11], 'back') or 0) + tonumber(ARGV[12])
  if now < grace then
    call('ZADD', KEYS[3], int(grace), due)
    return { 'NOTYET' }
  end
end
local seq = emit(S, ARGV[7], ARGV[8], ARGV[9], 0)
back(S)
return { 'OK', S.e, seq }
