-- What tick.lua, order.lua and look.lua have in common, each of which includes it.
--
-- KEYS[1]  members  hash: node -> msgpack [incarnation, ttl_ms, leaving, joined_ms, weight, zone, ended_ms]
-- KEYS[2]  ends     sorted set: live node -> the time in ms at which its membership, and all its leases, run out
-- KEYS[3]  leases   hash: partition -> msgpack [node, since_ms, last, reason, home, home_until_ms]
-- KEYS[4]  status   hash: node -> JSON, the node's status report
-- KEYS[5]  state    hash: version, clock, and the view of all members and leases with the version that it is of
-- KEYS[6]  events   list, newest first: msgpack [ms, kind, node, reason, [[partition, node before, reason before], ...]]
-- KEYS[7]  drained  set: the nodes that shall own nothing until an operator undrains them
-- KEYS[8]  asked    hash: partition that is to be released -> the time in ms at which that was asked for
-- KEYS[9]  scale    hash: node -> msgpack [incarnation, feed workers, batch writers]
-- ARGV[1]  msgpack, see the script
-- ARGV[2]  the time in ms instead of Redis' own, for tests; "" in operation

local MAX_EVENTS = 500

local now = tonumber(ARGV[2])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end

local state = redis.call('HMGET', KEYS[5], 'version', 'clock', 'view_version')
-- luacheck: push ignore 211 231 (not every script that includes this uses all of it)
local version, changed = tonumber(state[1] or 0), false

local function note(kind, name, reason, partitions)
  changed = true
  redis.call('LPUSH', KEYS[6], cmsgpack.pack({now, kind, name, reason, partitions or {}}))
  redis.call('LTRIM', KEYS[6], 0, MAX_EVENTS - 1)
end

-- A version is never used twice for different views, not even where Redis lost data: it is above that of any time before.
local function next_version()
  version = math.max(version + 1, now * 1000)
  redis.call('HSET', KEYS[5], 'version', string.format('%.0f', version))
end
-- luacheck: pop
