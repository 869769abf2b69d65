-- Puts what compaction wrote into the place of what it read.
-- KEYS   none, on a cluster the prefix of the slot; the channel's keys are built here (KEYSPACE.md)
-- ARGV   1: prefix of all keys of the channel's slot; 2: channel; 3: MessagePack [generation, live, at, seconds that
--        the old blocks have to live, group of the output ("": nothing stayed), its directory, [size of each of its
--        blocks], groups]; groups are flat, seven per group: name, its directory as it was read, number of the active
--        block, bytes before it, number of the first block, 1 if the group is to be removed, -1 or the size that its
--        active block must have, which goes at once then; 4: clock frame of the output; 5: floor of the channel
-- reply  1 if it happened, 0 if the channel was compacted meanwhile, output blocks are missing, or a directory is older
--        than it was read: that was in a server whose newest writes are lost
-- atomic all of it. A group whose directory has changed since, or its active block, is not removed: it keeps its blocks
--        from the one on that was active then
-- include errors.lua
local prefix, channel = ARGV[1], ARGV[2]
local generation, live, at, grace, output, directory, sizes, groups = unpack(cmsgpack.unpack(ARGV[3]))
local call = redis.call
local channel_key = prefix .. 'c:' .. channel

local function block_key(group, number)
  key = prefix .. 'b:' .. group .. ':' .. number .. ':' .. channel
  return key
end

local function is_there()
  for number, size in ipairs(sizes) do
    if call('STRLEN', block_key(output, number - 1)) ~= size then
      return false
    end
  end
  return true
end

local function went_back()
  key = channel_key
  for index = 1, #groups, 7 do
    local present = call('HGET', channel_key, 'g' .. groups[index])
    local number, before = string.match(present or '', '^(%d+):%x+:(%d+):')
    number = tonumber(number)
    if number and (number < groups[index + 2] or (number == groups[index + 2] and tonumber(before) ~= groups[index + 3])) then
      return true
    end
  end
  return false
end

local function expire(group, first, last)
  for number = first, last do
    call('PEXPIRE', block_key(group, string.format('%.0f', number)), grace * 1000)
  end
end

return with_key_in_error(function()
  key = channel_key
  local before, _, gone, next_number = string.match(call('HGET', channel_key, 'v') or '0:0:0:0:0',
    '^(%d+):(%d+):(%d+):(%d+)')
  gone, next_number = tonumber(gone), tonumber(next_number)
  if tonumber(before) ~= generation or not is_there() or went_back() then
    return 0
  end
  for number = 1, #sizes do
    call('PERSIST', block_key(output, number - 1))
  end
  for index = 1, #groups, 7 do
    local group, known, active, bytes, first = groups[index], groups[index + 1], groups[index + 2], groups[index + 3],
      groups[index + 4]
    local size = call('STRLEN', block_key(group, string.format('%.0f', active)))
    local expected = groups[index + 6]
    key = channel_key
    local present = call('HGET', channel_key, 'g' .. group)
    if groups[index + 5] == 1 and present == known and (expected < 0 or expected == size) then
      if string.sub(group, 1, 8) ~= 'compact-' then
        gone = gone + bytes + size
        next_number = math.max(next_number, active + 1)
      end
      expire(group, first, active)
      if expected >= 0 then
        call('UNLINK', block_key(group, string.format('%.0f', active)))
      end
      call('HDEL', channel_key, 'g' .. group, 'k' .. group)
    elseif present then
      local kept = string.match(present, '^(%d+:%x+:%d+:%d+):')
      expire(group, first, active - 1)
      call('HSET', channel_key, 'g' .. group, string.format('%s:%.0f:%.0f', kept, active, bytes))
    end
  end
  key = channel_key
  if output ~= '' then
    call('HSET', channel_key, 'g' .. output, directory, 'k' .. output, ARGV[4])
  end
  if ARGV[5] ~= '' then
    call('HSET', channel_key, 'f', ARGV[5])
  end
  call('HSET', channel_key, 'v', string.format('%.0f:%.0f:%.0f:%.0f:%.0f', generation + 1, live, gone, next_number, at))
  return 1
end)
