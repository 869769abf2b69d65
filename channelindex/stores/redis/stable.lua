-- Raises the stable counter and publishes it to those who wait. It is never below the time in microseconds: a counter that
-- was lost or rolled back with its server does not come to a value again that somebody has read before. It rises less often
-- than once a microsecond, and stays below 2^53 until the year 2255.
local function raise_stable_counter(key)
  local now = redis.call('TIME')
  local last = tonumber(redis.call('GET', key) or 0)
  local counter = string.format('%.0f', math.max(last + 1, now[1] * 1000000 + now[2]))
  redis.call('SET', key, counter)
  redis.call('PUBLISH', key, counter)
end
