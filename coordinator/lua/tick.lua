-- Everything one node has to do in one tick, atomically and by one clock: Redis' own.
-- Judges whose leases have run out, renews the caller's membership (and with it all of its leases), releases and takes
-- what the caller asks for, forgets nodes that died long ago, and returns all live members with their partitions.
--
-- KEYS[1]  members  hash: node -> msgpack [incarnation, renewed_ms, ttl_ms, draining, joined_ms]
-- KEYS[2]  leases   hash: partition -> msgpack [node, since_ms]; node "" means free since then
-- KEYS[3]  status   hash: node -> JSON that the node tells about itself
-- ARGV[1]  msgpack [node, incarnation, ttl_ms, forget_ms, draining, release, take, status, channel]
-- ARGV[2]  the time in ms instead of Redis' own, for tests; "" in operation
-- Reply    msgpack [accepted, joined, [[node, incarnation, remaining_ms, draining, [partition, ...]], ...]]
--
-- accepted is false where another live incarnation has the node's name; then nothing was changed for the caller.
-- joined is true where the caller was no live member before. A draining member without leases leaves.

local node, incarnation, ttl_ms, forget_ms, draining, release, take, status, channel =
  unpack(cmsgpack.unpack(ARGV[1]))

local now = tonumber(ARGV[2])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end

local function save_member(name, member)
  redis.call('HSET', KEYS[1], name,
    cmsgpack.pack({member.incarnation, member.renewed_ms, member.ttl_ms, member.draining, member.joined_ms}))
end

local function forget_member(name)
  redis.call('HDEL', KEYS[1], name)
  redis.call('HDEL', KEYS[3], name)
end

local function is_live(member)
  return member ~= nil and now - member.renewed_ms < member.ttl_ms
end

-- Members, as they were before this tick.
local members = {}
local raw = redis.call('HGETALL', KEYS[1])
for i = 1, #raw, 2 do
  local name = raw[i]
  local member = {}
  member.incarnation, member.renewed_ms, member.ttl_ms, member.draining, member.joined_ms =
    unpack(cmsgpack.unpack(raw[i + 1]))
  if member.renewed_ms > now then
    -- Redis' clock went back (another server took over, or it was set): nobody may live longer than a TTL from now.
    member.renewed_ms = now
    save_member(name, member)
  end
  if now - member.renewed_ms >= member.ttl_ms + forget_ms then
    forget_member(name)
  else
    members[name] = member
  end
end

-- Leases: partition -> node, "" for a free one. A lease lives exactly as long as the membership of its node. Nobody gets
-- the name of a node that ended before this has freed its leases, so they never pass on with the name.
local node_by_partition = {}
local function set_lease(partition, owner, since_ms)
  node_by_partition[partition] = owner
  redis.call('HSET', KEYS[2], partition, cmsgpack.pack({owner, since_ms}))
end

raw = redis.call('HGETALL', KEYS[2])
for i = 1, #raw, 2 do
  local partition = tonumber(raw[i])
  local owner = cmsgpack.unpack(raw[i + 1])[1]
  local member = members[owner]
  if owner == '' or is_live(member) then
    node_by_partition[partition] = owner
  else
    set_lease(partition, '', member and member.renewed_ms + member.ttl_ms or now)
  end
end

-- The caller's own membership. A name belongs to one incarnation until that one's time has run out.
local before = members[node]
local was_live = is_live(before)
local accepted = not was_live or before.incarnation == incarnation
local joined = accepted and not was_live

if accepted then
  members[node] = {
    incarnation = incarnation,
    renewed_ms = now,
    ttl_ms = ttl_ms,
    draining = draining,
    joined_ms = was_live and before.joined_ms or now,
  }
  local n_released = 0
  for _, partition in ipairs(release) do
    if node_by_partition[partition] == node then
      set_lease(partition, '', now)
      n_released = n_released + 1
    end
  end
  for _, partition in ipairs(take) do
    if (node_by_partition[partition] or '') == '' then
      set_lease(partition, node, now)
    end
  end
  if joined or n_released > 0 then
    redis.call('PUBLISH', channel, incarnation)
  end
end

local partitions_by_node = {}
for partition, owner in pairs(node_by_partition) do
  if owner ~= '' then
    local partitions = partitions_by_node[owner] or {}
    partitions[#partitions + 1] = partition
    partitions_by_node[owner] = partitions
  end
end

if accepted then
  if draining and not partitions_by_node[node] then
    members[node] = nil
    forget_member(node)
  else
    save_member(node, members[node])
    redis.call('HSET', KEYS[3], node, status)
  end
end

local reply = {}
for name, member in pairs(members) do
  if is_live(member) then
    local remaining_ms = member.renewed_ms + member.ttl_ms - now
    reply[#reply + 1] =
      {name, member.incarnation, remaining_ms, member.draining, partitions_by_node[name] or {}}
  end
end
return cmsgpack.pack({accepted, joined, reply})
