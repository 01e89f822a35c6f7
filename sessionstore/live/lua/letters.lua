-- letters.lua lists dead letters of a partition, oldest first, without their contents.
--
-- KEYS  1 dead (stream)
-- ARGV  1 id after which to begin, '' for the beginning  2 entries at most
-- Returns  OK letters: id, session, seq, header if it is short, bytes of header and body, reason of each
local from = ARGV[1] == '' and '-' or '(' .. ARGV[1]
local out = {}
for _, entry in ipairs(call('XRANGE', KEYS[1], from, '+', 'COUNT', ARGV[2])) do
  local f = {}
  for i = 1, #entry[2], 2 do f[entry[2][i]] = entry[2][i + 1] end
  local h, c = f.h or '', f.c or ''
  local n = #out
  out[n + 1], out[n + 2], out[n + 3] = entry[1], f.k or '', f.s or ''
  out[n + 4], out[n + 5], out[n + 6] = #h <= 4096 and h or '', int(#h + #c), f.why or ''
end
return { 'OK', out }
