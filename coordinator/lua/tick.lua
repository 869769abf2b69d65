-- Everything one node has to do in one tick, atomically and by one clock: Redis' own.
-- Judges whose time has run out, renews the caller's membership (and with it all of its leases), releases and takes
-- what the caller asks for, and returns the view of all where the caller does not know it yet. A tick of a quiet
-- cluster costs O(log members); the view is put together once per change, by the first who needs it.
--
-- KEYS     see shared.lua
-- ARGV[1]  msgpack [node, incarnation, predecessor, ttl_ms, weight, zone, leaving, release, reason, take, status,
--          known_version, grace_ms, forget_ms]
-- Reply    msgpack [accepted, joined, n_freed, version, own_remaining_ms, next_end_ms, feed_workers, batch_writers],
--          then msgpack [[[node, weight, draining, [partition, ...]], ...], [[partition, home], ...], [asked, ...]], or
--          "" where the caller knows this version
--
-- accepted is false where another live incarnation, not the caller's predecessor, has the name; then nothing was
-- changed for the caller. joined is true where the caller was no live member before. n_freed counts the leases that this
-- tick ended. A leaving member without leases leaves. next_end_ms is how long the next other member lives unrenewed, -1 where there is no other.
-- include shared.lua

local node, incarnation, predecessor, ttl_ms, weight, zone, leaving, release, reason, take, status, known_version,
  grace_ms, forget_ms = unpack(cmsgpack.unpack(ARGV[1]))

local function member_of(name)
  local raw = redis.call('HGET', KEYS[1], name)
  if not raw then return nil end
  local member = {}
  member.incarnation, member.ttl_ms, member.leaving, member.joined_ms, member.weight, member.zone, member.ended_ms =
    unpack(cmsgpack.unpack(raw))
  return member
end

local function save_member(name, member)
  redis.call('HSET', KEYS[1], name, cmsgpack.pack({member.incarnation, member.ttl_ms, member.leaving,
    member.joined_ms, member.weight, member.zone, member.ended_ms}))
end

local function forget_member(name)
  redis.call('HDEL', KEYS[1], name)
  redis.call('HDEL', KEYS[4], name)
  redis.call('HDEL', KEYS[9], name)
  redis.call('ZREM', KEYS[2], name)
end

-- A lease that ends because its node goes remembers that node as the partition's home for the grace time. A node that
-- kept the partition for somebody who is still remembered does not become the home itself.
local n_freed = 0
local function free_lease(partition, lease, why, at)
  n_freed = n_freed + 1
  local owner, home, home_until = lease[1], lease[5], lease[6]
  if (why == 'died' or why == 'left' or why == 'drained') and (home == '' or home_until <= now) then
    home, home_until = owner, at + grace_ms
  end
  redis.call('HSET', KEYS[3], partition, cmsgpack.pack({'', at, owner, why, home, home_until}))
  return {tonumber(partition), owner, why}
end

-- If Redis' clock went back (another server took over, or it was set), nobody may live longer than a TTL from now.
if now < tonumber(state[2] or 0) then
  local ends = redis.call('ZRANGE', KEYS[2], 0, -1, 'WITHSCORES')
  for i = 1, #ends, 2 do
    local member = member_of(ends[i])
    local latest = now + (member and member.ttl_ms or 0)
    if tonumber(ends[i + 1]) > latest then redis.call('ZADD', KEYS[2], latest, ends[i]) end
  end
end
redis.call('HSET', KEYS[5], 'clock', string.format('%.0f', now))

-- Free the leases of those whose time has run out, and of those whose membership was lost.
local ended = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'WITHSCORES')
if #ended > 0 then
  local end_by_name, freed_by_name = {}, {}
  for i = 1, #ended, 2 do
    end_by_name[ended[i]] = tonumber(ended[i + 1])
    freed_by_name[ended[i]] = {}
    redis.call('ZREM', KEYS[2], ended[i])
  end
  local raw = redis.call('HGETALL', KEYS[3])
  for i = 1, #raw, 2 do
    local lease = cmsgpack.unpack(raw[i + 1])
    local freed = freed_by_name[lease[1]]
    if freed then freed[#freed + 1] = free_lease(raw[i], lease, 'died', end_by_name[lease[1]]) end
  end
  for name, end_ms in pairs(end_by_name) do
    local member = member_of(name)
    if member then
      member.ended_ms = end_ms
      save_member(name, member)
    end
    note('node.died', name, '', freed_by_name[name])
  end
end

-- The caller's own membership. A name belongs to one incarnation until that one's time has run out, or until a process
-- comes that can name it: its successor on the same machine, which knows that it is dead.
local own_end = redis.call('ZSCORE', KEYS[2], node)
local before = own_end and member_of(node)
local is_successor = before and predecessor ~= '' and before.incarnation == predecessor
local accepted = not before or before.incarnation == incarnation or is_successor
local joined = accepted and not before
local feed_workers, batch_writers = 0, 0

if accepted then
  local member = {incarnation = incarnation, ttl_ms = ttl_ms, leaving = leaving,
    joined_ms = before and before.joined_ms or now, weight = weight, zone = zone, ended_ms = 0}
  redis.call('ZADD', KEYS[2], now + ttl_ms, node)
  if joined then
    -- What Redis still lists under the name is of a life that ended while its membership was lost.
    local raw, freed = redis.call('HGETALL', KEYS[3]), {}
    for i = 1, #raw, 2 do
      local lease = cmsgpack.unpack(raw[i + 1])
      if lease[1] == node then freed[#freed + 1] = free_lease(raw[i], lease, 'died', now) end
    end
    note('node.joined', node, zone, freed)
  elseif is_successor and before.incarnation ~= incarnation then
    note('node.restarted', node, '')
  elseif before.leaving ~= leaving then
    note('node.leaving', node, '')
  elseif before.weight ~= weight or before.zone ~= zone or before.ttl_ms ~= ttl_ms then
    note('node.changed', node, '')
  end
  if changed then save_member(node, member) end
  if status ~= '' then redis.call('HSET', KEYS[4], node, status) end

  local released = {}
  for _, partition in ipairs(release) do
    local raw = redis.call('HGET', KEYS[3], partition)
    local lease = raw and cmsgpack.unpack(raw)
    if lease and lease[1] == node then
      local why = redis.call('HDEL', KEYS[8], partition) == 1 and 'asked' or reason
      released[#released + 1] = free_lease(partition, lease, why, now)
    end
  end
  if #released > 0 then note('lease.released', node, reason, released) end

  local taken = {}
  local leases = #take > 0 and redis.call('HMGET', KEYS[3], unpack(take)) or {}
  for i, partition in ipairs(take) do
    local lease = leases[i] and cmsgpack.unpack(leases[i]) or {'', 0, '', '', '', 0}
    if lease[1] == '' or not redis.call('ZSCORE', KEYS[2], lease[1]) then
      local home, home_until = lease[5], lease[6]
      if home == node then home, home_until = '', 0 end
      redis.call('HSET', KEYS[3], partition, cmsgpack.pack({node, now, lease[3], lease[4], home, home_until}))
      redis.call('HDEL', KEYS[8], partition)
      taken[#taken + 1] = {partition, lease[3], lease[4]}
    end
  end
  if #taken > 0 then note('lease.taken', node, '', taken) end

  local ordered = redis.call('HGET', KEYS[9], node)
  if ordered then
    local of_life, feeds, writers = unpack(cmsgpack.unpack(ordered))
    if of_life == incarnation then
      feed_workers, batch_writers = feeds, writers
    else
      redis.call('HDEL', KEYS[9], node)
    end
  end

  if leaving then
    local holds = false
    for _, raw in ipairs(redis.call('HVALS', KEYS[3])) do
      holds = holds or cmsgpack.unpack(raw)[1] == node
    end
    if not holds then
      forget_member(node)
      note('node.left', node, '')
    end
  end
end

if changed then next_version() end

local function build_view()
  local members, by_name, homes = {}, {}, {}
  local live, drained = {}, {}
  for _, name in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do live[name] = true end
  for _, name in ipairs(redis.call('SMEMBERS', KEYS[7])) do drained[name] = true end
  local raw = redis.call('HGETALL', KEYS[1])
  for i = 1, #raw, 2 do
    local name, member = raw[i], cmsgpack.unpack(raw[i + 1])
    if live[name] then
      local listed = {name, member[5], member[3] or drained[name] or false, {}}
      members[#members + 1] = listed
      by_name[name] = listed
    elseif member[7] + forget_ms <= now then
      forget_member(name)
    end
  end
  raw = redis.call('HGETALL', KEYS[3])
  for i = 1, #raw, 2 do
    local partition, lease = tonumber(raw[i]), cmsgpack.unpack(raw[i + 1])
    local owner = by_name[lease[1]]
    if owner then
      local partitions = owner[4]
      partitions[#partitions + 1] = partition
    end
    if lease[6] > now and by_name[lease[5]] then homes[#homes + 1] = {partition, lease[5]} end
  end
  local asked = {}
  for _, partition in ipairs(redis.call('HKEYS', KEYS[8])) do asked[#asked + 1] = tonumber(partition) end
  return cmsgpack.pack({members, homes, asked})
end

local view = ''
if version ~= known_version then
  if tonumber(state[3] or 0) == version then
    view = redis.call('HGET', KEYS[5], 'view')
  else
    view = build_view()
    redis.call('HSET', KEYS[5], 'view', view, 'view_version', string.format('%.0f', version))
  end
end

local next_end_ms = -1
local first = redis.call('ZRANGE', KEYS[2], 0, 1, 'WITHSCORES')
for i = 1, #first, 2 do
  if first[i] ~= node and next_end_ms < 0 then next_end_ms = tonumber(first[i + 1]) - now end
end
local own_remaining_ms = own_end and tonumber(own_end) - now or 0
return {cmsgpack.pack({accepted, joined, n_freed, version, own_remaining_ms, next_end_ms, feed_workers, batch_writers}),
  view}
