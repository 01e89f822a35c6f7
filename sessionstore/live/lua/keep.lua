-- keep.lua takes, renews or gives up the lease of a partition's keeper. Run twice, it has the same effect.
--
-- KEYS  1 lease (string: fencing token of the keeper)
-- ARGV  1 keep|free  2 token held, '' if none  3 token to take the lease with  4 life of the lease in milliseconds
-- Returns  the token held after the call, '' if it is not the caller's
local holder = call('GET', KEYS[1])
local mine = holder and (holder == ARGV[2] or holder == ARGV[3])
if ARGV[1] == 'free' then
  if mine then call('DEL', KEYS[1]) end
  return ''
end
if mine then
  call('PEXPIRE', KEYS[1], ARGV[4])
  return holder
end
if holder then return '' end
call('SET', KEYS[1], ARGV[3], 'PX', ARGV[4])
return ARGV[3]
