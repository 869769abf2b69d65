-- Everything there is to see, at one moment. Changes nothing, also not what has run out.
--
-- KEYS     see shared.lua
-- ARGV[1]  msgpack [how many of the newest events]
-- Reply    now, then members, ends, leases, status as field and value in turn, drained, asked as field and value,
--          events
-- include shared.lua

local n_events = cmsgpack.unpack(ARGV[1])[1]
return {
  string.format('%.0f', now),
  redis.call('HGETALL', KEYS[1]),
  redis.call('ZRANGE', KEYS[2], 0, -1, 'WITHSCORES'),
  redis.call('HGETALL', KEYS[3]),
  redis.call('HGETALL', KEYS[4]),
  redis.call('SMEMBERS', KEYS[7]),
  redis.call('HGETALL', KEYS[8]),
  n_events > 0 and redis.call('LRANGE', KEYS[6], 0, n_events - 1) or {},
}
