-- settle.lua finishes a cut: the partial answer, if any of it was shown, then the event that caused the cut.
--
-- KEYS  1-14 of event.lua  15 what its user has spent
-- ARGV  1-6 of event.lua  7 field in ids of the cause that the caller has read  8-10 field in ids, h, c of the partial
--       answer, '' if nothing was shown  11 what the answer cost, as in final.lua
-- Returns  OK epoch seq (of the cause) | DONE (somebody else did) | NOTFOUND
local S = session()
if not S then return { 'NOTFOUND' } end
local g = call('HMGET', S.gen, 'state', 'cid', 'ck', 'ch', 'cc', 'q', 'aid')
if g[1] ~= 'cut' or g[2] ~= ARGV[7] or S.st ~= 'active' then return { 'DONE' } end
if call('HEXISTS', S.ids, 'ai:' .. (g[7] or '')) == 0 then usage(S, KEYS[15], ARGV[11], 0) end -- also if nothing was shown
if ARGV[8] ~= '' and call('HEXISTS', S.ids, ARGV[8]) == 0 then
  emit(S, ARGV[8], ARGV[9], ARGV[10], 1)
  answered(S, g[6])
end
idle(S)
return { 'OK', S.e, cause(S, g[3], g[2], g[4], g[5]) }
