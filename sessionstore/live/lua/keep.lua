-- keep.lua takes, renews or gives up the lease of a partition's keeper. Run twice, it has the same effect.
--
-- The keepers' beat also tells how long a partition has been out of everybody's reach: then nobody could renew a
-- socket's lease or come back, so absence does not count for a window, and holds are given their lease once more.
--
-- KEYS  1 lease (string: fencing token of the keeper)  2 beat
-- ARGV  1 keep|free  2 token held, '' if none  3 token to take the lease with  4 life of the lease in milliseconds
--       5 milliseconds for which absence does not count after an outage: OUTAGE without a beat
-- Returns  the token held after the call, '' if it is not the caller's
local holder = call('GET', KEYS[1])
local mine = holder and (holder == ARGV[2] or holder == ARGV[3])
if ARGV[1] == 'free' then
  if mine then call('DEL', KEYS[1]) end
  return ''
end
if holder and not mine then return '' end
local away = now - tonumber(call('HGET', KEYS[2], 'at') or now)
if away > OUTAGE then call('HSET', KEYS[2], 'until', int(now + tonumber(ARGV[5]))) end
-- Longer than a keeper that died is missed: nobody could renew a hold either (leave.lua).
if away > 1.5 * tonumber(ARGV[4]) then call('HSET', KEYS[2], 'back', int(now)) end
call('HSET', KEYS[2], 'at', int(now))
if mine then
  call('PEXPIRE', KEYS[1], ARGV[4])
  return holder
end
call('SET', KEYS[1], ARGV[3], 'PX', ARGV[4])
return ARGV[3]
