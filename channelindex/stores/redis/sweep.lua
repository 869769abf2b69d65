-- Gives strays of a channel a time to live: what a switch left, or a compactor that did not come to its switch.
-- KEYS   none, on a cluster the prefix of the slot; the channel's keys are built here (KEYSPACE.md)
-- ARGV   1: prefix of all keys of the channel's slot; 2: channel; 3: MessagePack [ms that they have to live, blocks at
--        most, Unix time: what is pending since before it becomes a stray]
-- reply  1 if some are left, 0 if none
-- atomic all of it
-- include errors.lua
local prefix, channel = ARGV[1], ARGV[2]
-- include strays.lua
-- include expire.lua
local ms, most, since = unpack(cmsgpack.unpack(ARGV[3]))

return with_key_in_error(function()
  key = channel_key
  local pending, strays = unpack(call('HMGET', channel_key, 'p', 's'))
  strays = strays or ''
  if pending and tonumber(string.match(pending, '(%d+)$') or 0) < since then
    strays = with_pending(strays, pending, '')
    call('HDEL', channel_key, 'p')
  end
  local left = expire(strays, ms, most)
  key = channel_key
  if left ~= '' then
    call('HSET', channel_key, 's', left)
    return 1
  end
  call('HDEL', channel_key, 's')
  return 0
end)
