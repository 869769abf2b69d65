-- Moves directories of channels: their clock, or to the next block where the active one is full.
-- KEYS   none, on a cluster the prefix of the slot; the channels' keys are built here (KEYSPACE.md)
-- ARGV   1: prefix of the index
--        2: MessagePack [slot, items, slot, items, ...]; items are flat, eight per move: channel, group, the directory
--           as it was read, the new one, number of the active block, number of the next one ("" if it stays), how many
--           bytes of the active block the clock sums up, length of the clock frame
--        3: all these clock frames one after the other
-- reply  MessagePack [1 or 0, ...] in the order of the moves: whether it happened
-- atomic per move: only if the directory is as it was read, and the active block has these bytes; no more than these,
--        if it is full. Then the next block, which begins with the clock frame, and the directory with its clock
-- include errors.lua
-- include frames.lua

local function move(slot_prefix, channel, group, known, new, number, next_number, size, clock)
  local channel_key, rotates = slot_prefix .. 'c:' .. channel, next_number ~= ''
  local block_prefix = slot_prefix .. 'b:' .. group .. ':'
  key = channel_key
  if call('HGET', channel_key, 'g' .. group) ~= known then
    return 0
  end
  key = block_prefix .. number .. ':' .. channel
  local present = call('STRLEN', key)
  if present < size or (rotates and present ~= size) then
    return 0
  end
  if rotates then
    call('COPY', key, slot_prefix .. 't', 'REPLACE') -- without the room that APPEND reserved, up to half of the string
    call('RENAME', slot_prefix .. 't', key)
    key = block_prefix .. next_number .. ':' .. channel
    call('SET', key, clock)
  end
  key = channel_key
  call('HSET', channel_key, 'g' .. group, new, 'k' .. group, clock)
  return 1
end

return with_key_in_error(function()
  local reply = {}
  for section = 1, #sections, 2 do
    local slot_prefix = prefix .. '{' .. sections[section] .. '}:'
    local items = sections[section + 1]
    for at = 1, #items, 8 do
      reply[#reply + 1] = move(slot_prefix, items[at], items[at + 1], items[at + 2], items[at + 3], items[at + 4],
        items[at + 5], items[at + 6], take(items[at + 7]))
    end
  end
  return cmsgpack.pack(reply)
end)
