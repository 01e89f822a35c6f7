-- sweep.lua tells what is due in a partition. Everything else it leaves to the scripts that act, which look again;
-- only questions are put off, so that whoever is told has time to answer.
--
-- KEYS  1 due  2 inst
-- ARGV  1 how many at most  2 milliseconds by which questions are put off  3 kinds to leave alone now, each between
--       two colons (':end:ask:'), '' for none
-- Returns  inst ('' if missing), members that are due ("kind:sid"), earliest first
local out, at, limit = {}, 0, tonumber(ARGV[1])
while #out < limit do
  local due = call('ZRANGEBYSCORE', KEYS[1], '-inf', int(now), 'LIMIT', at, 256)
  for i = 1, #due do
    local kind = string.match(due[i], '^(%l+):') or ''
    if #out < limit and not string.find(ARGV[3], ':' .. kind .. ':', 1, true) then out[#out + 1] = due[i] end
  end
  if #due < 256 then break end
  at = at + 256
end
local later = int(now + tonumber(ARGV[2]))
for i = 1, #out do
  if string.sub(out[i], 1, 4) == 'ask:' then call('ZADD', KEYS[1], 'XX', later, out[i]) end
end
return { call('GET', KEYS[2]) or '', out }
