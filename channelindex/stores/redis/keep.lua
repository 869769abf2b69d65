-- Makes output blocks durable that a switch is going to name, where they are too many for the switch itself.
-- KEYS   none, on a cluster the prefix of the slot; the channel's keys are built here (KEYSPACE.md)
-- ARGV   1: prefix of all keys of the channel's slot; 2: channel; 3: MessagePack [generation, Unix time, group of the
--        output, number of the first of these blocks, size of each]
-- reply  1 if it happened, 0 if the channel was compacted meanwhile, its directory was lost, somebody else's output is
--        pending by now, or blocks are missing
-- atomic all of it. Those before the first have to be pending already. What else is pending becomes a stray
-- include errors.lua
local prefix, channel = ARGV[1], ARGV[2]
-- include strays.lua
-- include outputs.lua
local generation, now, output, first, sizes = unpack(cmsgpack.unpack(ARGV[3]))

return with_key_in_error(function()
  key = channel_key
  local compacted, pending, strays = unpack(call('HMGET', channel_key, 'v', 'p', 's'))
  if tonumber(string.match(compacted or '0', '^%d+')) ~= generation or call('EXISTS', channel_key) == 0
    or not are_there(output, first, sizes) then
    return 0
  end
  if first > 0 and string.match(pending or '', '^([^:]+:%d+):') ~= output .. ':' .. decimal(first) then
    return 0
  end
  persist(output, first, sizes)
  key = channel_key
  local all_strays = with_pending(strays or '', pending, output)
  if all_strays ~= '' then
    call('HSET', channel_key, 's', all_strays)
  end
  call('HSET', channel_key, 'p', output .. ':' .. decimal(first + #sizes) .. ':' .. decimal(now))
  return 1
end)
