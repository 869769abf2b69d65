-- Puts what compaction wrote into the place of what it read.
-- KEYS   none, on a cluster the prefix of the slot; the channel's keys are built here (KEYSPACE.md)
-- ARGV   1: prefix of all keys of the channel's slot; 2: channel; 3: MessagePack [generation, live, at, ms that the old
--        blocks have to live, old blocks at most that get it here, group of the output ("": nothing stayed), its
--        directory, number of its first block that keep.lua did not make durable, size of each from there on, groups];
--        groups are flat, seven per group: name, its directory as it was read, number of the active block, bytes
--        before it, number of the first block, 1 if the group is to be removed, -1 or the size that its active block
--        must have, which goes at once then; 4: clock frame of the output; 5: floor of the channel
-- reply  0 if it did not happen: the channel was compacted meanwhile, output blocks are missing, or a directory is gone
--        or older than it was read: what the server had is lost. 1 if it did; 2 if old blocks are left without a time to
--        live, for sweep.lua
-- atomic all of it. A group whose directory has changed since, or its active block, is not removed: it keeps its blocks
--        from the one on that was active then
-- include errors.lua
local prefix, channel = ARGV[1], ARGV[2]
-- include strays.lua
-- include outputs.lua
-- include expire.lua
local generation, live, at, ms, most, output, directory, kept, sizes, groups = unpack(cmsgpack.unpack(ARGV[3]))

local function went_back(present, active, bytes)
  local number, before = string.match(present or '', '^(%d+):%x+:(%d+):')
  number = tonumber(number) -- none: under the same generation, only a loss takes a group away
  return not number or number < active or (number == active and tonumber(before) ~= bytes)
end

-- The directories of the groups, as they are now; nil if one went back.
local function directories()
  local fields = {}
  for index = 1, #groups, 7 do
    fields[#fields + 1] = 'g' .. groups[index]
  end
  local found = #fields > 0 and call('HMGET', channel_key, unpack(fields)) or {}
  for position, present in ipairs(found) do
    local index = 7 * position - 6
    if went_back(present, groups[index + 2], groups[index + 3]) then
      return nil
    end
  end
  return found
end

return with_key_in_error(function()
  key = channel_key
  local noted, pending, strays = unpack(call('HMGET', channel_key, 'v', 'p', 's'))
  local before, _, gone, next_number = string.match(noted or '0:0:0:0:0', '^(%d+):(%d+):(%d+):(%d+)')
  gone, next_number = tonumber(gone), tonumber(next_number)
  local present_directories = directories()
  if tonumber(before) ~= generation or not present_directories or call('EXISTS', channel_key) == 0
    or not are_there(output, kept, sizes) then
    return 0
  end
  if kept > 0 and string.match(pending or '', '^([^:]+:%d+):') ~= output .. ':' .. decimal(kept) then
    return 0
  end
  persist(output, kept, sizes)
  strays = with_pending(strays or '', pending, output)
  local removed, changed = { 'p' }, {}
  for position, present in ipairs(present_directories) do
    local index = 7 * position - 6
    local group, known, active, bytes, first = groups[index], groups[index + 1], groups[index + 2], groups[index + 3],
      groups[index + 4]
    local is_removed, expected = groups[index + 5] == 1 and present == known, groups[index + 6]
    local size = is_removed and call('STRLEN', block_key(group, active))
    if is_removed and (expected < 0 or expected == size) then
      if string.sub(group, 1, 8) ~= 'compact-' then
        gone = gone + bytes + size
        next_number = math.max(next_number, active + 1)
      end
      strays = with_stray(strays, group, first, expected < 0 and active or active - 1)
      if expected >= 0 then
        call('UNLINK', block_key(group, active))
      end
      removed[#removed + 1], removed[#removed + 2] = 'g' .. group, 'k' .. group
    elseif present then
      strays = with_stray(strays, group, first, active - 1)
      local fields = string.match(present, '^(%d+:%x+:%d+:%d+):')
      changed[#changed + 1], changed[#changed + 2] = 'g' .. group, fields .. ':' .. decimal(active) .. ':' .. decimal(bytes)
    end
  end
  local left = expire(strays, ms, most)
  if output ~= '' then
    changed[#changed + 1], changed[#changed + 2] = 'g' .. output, directory
    changed[#changed + 1], changed[#changed + 2] = 'k' .. output, ARGV[4]
  end
  if ARGV[5] ~= '' then
    changed[#changed + 1], changed[#changed + 2] = 'f', ARGV[5]
  end
  if left ~= '' then
    changed[#changed + 1], changed[#changed + 2] = 's', left
  else
    removed[#removed + 1] = 's'
  end
  changed[#changed + 1] = 'v'
  changed[#changed + 1] = string.format('%.0f:%.0f:%.0f:%.0f:%.0f', generation + 1, live, gone, next_number, at)
  key = channel_key
  call('HSET', channel_key, unpack(changed))
  call('HDEL', channel_key, unpack(removed))
  return left == '' and 1 or 2
end)
