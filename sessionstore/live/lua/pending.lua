-- pending.lua reads what a partition has for MongoDB. It changes nothing.
--
-- KEYS  1 lease of the keeper  2 inst  3 wal  4 doc
-- ARGV  1 token of the keeper  2 entries at most  3 bytes at most (but one entry)  4 documents at most
-- Returns  LOST | OK inst drained(1|0) entries sessions
--          entries: id, session, epoch, seq, h, c of each, in order. drained: there are no more. sessions: whose
--          documents are due.
if call('GET', KEYS[1]) ~= ARGV[1] then return { 'LOST' } end
local max, room = tonumber(ARGV[2]), tonumber(ARGV[3])
local out, n, from, drained = {}, 0, '-', nil
while drained == nil do
  local page = call('XRANGE', KEYS[3], from, '+', 'COUNT', 32)
  for i = 1, #page do
    local id, f = page[i][1], page[i][2]
    room = room - #(f[8] or '') - #(f[10] or '')
    if n == max or n > 0 and room < 0 then
      drained = '0'
      break
    end
    out[#out + 1] = id
    for j = 2, 10, 2 do out[#out + 1] = f[j] or '' end -- an entry of another form must not stop a partition
    n, from = n + 1, '(' .. id
  end
  if drained == nil and #page < 32 then drained = '1' end
end
local docs = call('ZRANGEBYSCORE', KEYS[4], '-inf', int(now), 'LIMIT', 0, ARGV[4])
return { 'OK', call('GET', KEYS[2]) or '', drained, out, docs }
