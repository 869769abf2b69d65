-- Hands out the next epoch.
-- KEYS   1: the highest epoch handed out
-- ARGV   1: an epoch that was handed out before, though the counter may not know it any more; 0 for none
-- reply  the epoch, a string
-- atomic all of it. The number is never below the time in milliseconds: a Redis that forgot the counter, or the whole
--        index, hands out none again. Far below 2^53, so Lua's doubles hold it exactly.
local now = redis.call('TIME')
local last = math.max(tonumber(redis.call('GET', KEYS[1]) or 0), tonumber(ARGV[1]))
local epoch = string.format('%.0f', math.max(last + 1, now[1] * 1000 + math.floor(now[2] / 1000)))
redis.call('SET', KEYS[1], epoch)
return epoch
