-- dead.lua moves an entry of the WAL that MongoDB will not take to the dead letters, under the same conditions as
-- done.lua. An entry that is not in the WAL any more is left alone, so that a repeated call adds no second letter.
--
-- KEYS  1 inst  2 wal  3 lease of the keeper  4 dead (stream)
-- ARGV  1 token of the keeper  2 inst of the read  3 id of the entry  4 reason
-- Returns  OK | LOST
if call('GET', KEYS[3]) ~= ARGV[1] or (call('GET', KEYS[1]) or '') ~= ARGV[2] then return { 'LOST' } end
local entry = call('XRANGE', KEYS[2], ARGV[3], ARGV[3])[1]
if entry then
  local f = entry[2]
  f[#f + 1], f[#f + 2] = 'why', ARGV[4]
  call('XADD', KEYS[4], '*', unpack(f))
  call('XDEL', KEYS[2], ARGV[3])
end
return { 'OK' }
