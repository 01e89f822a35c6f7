-- settle.lua finishes a cut: the partial answer, if any of it was shown, then the event that caused the cut.
--
-- KEYS  1-14 of event.lua
-- ARGV  1-6 of event.lua  7 field in ids of the cause that the caller has read  8-10 field in ids, h, c of the partial
--       answer, '' if nothing was shown
-- Returns  OK epoch seq (of the cause) | DONE (somebody else did) | NOTFOUND
local S = session()
if not S then return { 'NOTFOUND' } end
local g = call('HMGET', S.gen, 'state', 'cid', 'ck', 'ch', 'cc', 'q')
if g[1] ~= 'cut' or g[2] ~= ARGV[7] or S.st ~= 'active' then return { 'DONE' } end
if ARGV[8] ~= '' and call('HEXISTS', S.ids, ARGV[8]) == 0 then
  emit(S, ARGV[8], ARGV[9], ARGV[10], 1)
  answered(S, g[6])
end
idle(S)
return { 'OK', S.e, cause(S, g[3], g[2], g[4], g[5]) }
