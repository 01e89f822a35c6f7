-- running.lua reads the answer that runs or was cut.
--
-- KEYS  1 gen  2 gc  3 s
-- Returns  OK gen hash, chunks, user id | NOTFOUND
local user = call('HGET', KEYS[3], 'u')
if not user then return { 'NOTFOUND' } end
return { 'OK', call('HGETALL', KEYS[1]), call('LRANGE', KEYS[2], 0, -1), user }
