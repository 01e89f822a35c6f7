-- prelude.lua stands in front of every script.
local call = redis.call

-- int writes a number in full: tostring(1e15) is "1e+15".
local function int(n) return string.format('%d', n) end

-- now is Redis' own clock in milliseconds: replicas' clocks are not compared with each other.
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- record is what travels on a session's channel. The sealed body comes last, because it may hold any byte.
local function record(epoch, seq, h, c)
  return epoch .. ' ' .. seq .. ' ' .. #h .. ' ' .. h .. c
end
