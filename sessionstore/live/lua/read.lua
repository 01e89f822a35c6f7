-- read.lua reads on from a position: a page of what follows, or a snapshot of the newest events if that cannot be
-- continued (other epoch, position beyond the top, records trimmed). Never a page with a hole.
--
-- KEYS  1-10 of event.lua
-- ARGV  1-6 of event.lua  7 epoch  8 seq  9 bytes of a page (at least one record)  10 bytes and 11 records of a snapshot
-- Returns  PAGE|SNAP epoch seq more(1|0) hasmore(1|0) records hash [gen fields, chunks]
--          records: seq, epoch, h, c of each, oldest first. seq: of the last one, of the top for a snapshot.
--          gen: answer id, attempt, chunk; given with the last page only, and if an answer runs.
local S = session()
if not S then return { 'NOTFOUND' } end
if S.st == 'active' then roll(S, seen) end
local out = {}

local function put(r)
  out[#out + 1] = string.match(r[1], '^%d+')
  out[#out + 1], out[#out + 2], out[#out + 3] = r[2][2], r[2][4], r[2][6]
end

-- page fills out with what follows last; returns the position reached and whether there is more, nil for a hole.
local function page(last, limit)
  local bytes, want = 0, last + 1
  while want <= S.s do
    local r = call('XRANGE', S.log, int(want) .. '-0', '+', 'COUNT', 32)
    if #r == 0 then return nil end
    for i = 1, #r do
      if tonumber(string.match(r[i][1], '^%d+')) ~= want then return nil end
      local size = #r[i][2][4] + #r[i][2][6]
      if #out > 0 and bytes + size > limit then return want - 1, true end
      put(r[i])
      bytes, want = bytes + size, want + 1
    end
  end
  return S.s, false
end

-- running adds the answer being produced, with all that was published of it.
local function running(reply)
  local g = call('HMGET', S.gen, 'state', 'aid', 'attempt', 'chunk')
  if g[1] == 'run' and g[4] ~= '0' then
    reply[#reply + 1] = { g[2], g[3], g[4] }
    reply[#reply + 1] = call('LRANGE', S.gc, 0, -1)
  end
  return reply
end

local last = tonumber(ARGV[8])
if ARGV[7] == S.e and last <= S.s then
  local at, more = page(last, tonumber(ARGV[9]))
  if at then
    local reply = { 'PAGE', S.e, int(at), more and '1' or '0', '0', out, call('HGETALL', S.key) }
    if more then return reply end
    return running(reply)
  end
end

out = {}
local rev, bytes, from = call('XREVRANGE', S.log, '+', '-', 'COUNT', ARGV[11]), 0, 0
for i = 1, #rev do
  bytes = bytes + #rev[i][2][4] + #rev[i][2][6]
  if i > 1 and bytes > tonumber(ARGV[10]) then break end
  from = i
end
for i = from, 1, -1 do put(rev[i]) end
local older = S.s > 0 and out[1] ~= '1'
return running({ 'SNAP', S.e, int(S.s), '0', older and '1' or '0', out, call('HGETALL', S.key) })
