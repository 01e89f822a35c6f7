-- expire.lua ends a session whose window is over. Its end is when the last of its sockets left.
--
-- KEYS  1-14 of event.lua  15 beat
-- ARGV  1-6 of event.lua  7 field in ids  8 h  9 c of its session_ended  10 window in milliseconds  11 milliseconds until
--       a session that is kept is looked at again
-- Returns  OK | KEPT | NOTYET | SETTLE | DONE
local S = session()
if not S or S.st ~= 'active' then
  call('ZREM', KEYS[3], 'end:' .. ARGV[1])
  if not S then call('ZREM', KEYS[13], ARGV[1]) end
  return { 'DONE' }
end
local deadline = tonumber(call('ZSCORE', KEYS[13], S.id) or now - 1)
if now <= deadline then
  call('ZADD', KEYS[3], int(deadline), 'end:' .. S.id)
  return { 'NOTYET' }
end
if call('HGET', S.gen, 'state') == 'cut' then return { 'SETTLE' } end
if kept(S) or paused(KEYS[15]) then
  call('ZADD', KEYS[3], int(now + tonumber(ARGV[11])), 'end:' .. S.id)
  return { 'KEPT' }
end
finish(S, ARGV[7], ARGV[8], ARGV[9], math.max(deadline - tonumber(ARGV[10]), 0))
return { 'OK' }
