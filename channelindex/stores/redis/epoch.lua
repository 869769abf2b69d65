-- Hands out the next epoch.
-- KEYS   1: the highest epoch handed out
-- ARGV   none
-- reply  the epoch, a string
-- atomic all of it. The number is never below the time in milliseconds: a Redis that forgot the counter, or the whole
--        index, hands out none again. Far below 2^53, so Lua's doubles hold it exactly.
local now = redis.call('TIME')
local last = tonumber(redis.call('GET', KEYS[1]) or 0)
local epoch = string.format('%.0f', math.max(last + 1, now[1] * 1000 + math.floor(now[2] / 1000)))
redis.call('SET', KEYS[1], epoch)
return epoch
