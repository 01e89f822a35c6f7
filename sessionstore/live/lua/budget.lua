-- budget.lua reads what a user has spent today (UTC). It changes nothing.
--
-- KEYS  1 what the user has spent
-- Returns  OK tokens, milliseconds until the new day
local v = call('HMGET', KEYS[1], 'd', 'n')
local today = tonumber(v[1] or 0) >= math.floor(now / 86400000)
return { 'OK', today and v[2] or '0', int(86400000 - now % 86400000) }
