-- Starts the next block of channels whose active block is full.
-- KEYS   none, on a cluster the prefix of the slot; the channels' keys are built here (KEYSPACE.md)
-- ARGV   1: prefix of the index
--        2: MessagePack [slot, items, slot, items, ...]; items are flat, eight per rotation: channel, group, epoch (16
--           hex digits), number of the full block, number of the next one, length of the clock log that the header
--           was made from, lengths of the next block's header frame and of that log folded
--        3: all these headers and folded logs one after the other
-- reply  MessagePack [1 or 0, ...] in the order of the rotations: whether it happened
-- atomic per rotation: only if the directory names this epoch and the full block, and the clock log still has that
--        length; then the next block, the folded clock log and the directory
-- include errors.lua
local prefix, sections, body = ARGV[1], cmsgpack.unpack(ARGV[2]), ARGV[3]
local call = redis.call
local start = 1

local function take(length)
  start = start + length
  return string.sub(body, start - length, start - 1)
end

local function rotate(slot_prefix, channel, group, epoch, number, next_number, log_bytes, header, folded)
  local channel_key, field = slot_prefix .. 'c:' .. channel, 'g' .. group
  local clock_key = slot_prefix .. 'k:' .. group .. ':' .. channel
  local block_prefix = slot_prefix .. 'b:' .. group .. ':'
  key = channel_key
  if call('HGET', channel_key, field) ~= number .. ':' .. epoch then
    return 0
  end
  key = clock_key
  if call('STRLEN', clock_key) ~= log_bytes then
    return 0
  end
  key = block_prefix .. number .. ':' .. channel
  call('SET', key, call('GET', key)) -- gives back the room that APPEND reserved, up to half of the string
  key = block_prefix .. next_number .. ':' .. channel
  call('SET', key, header)
  key = clock_key
  call('SET', clock_key, folded)
  key = channel_key
  call('HSET', channel_key, field, next_number .. ':' .. epoch)
  return 1
end

return with_key_in_error(function()
  local reply = {}
  for section = 1, #sections, 2 do
    local slot_prefix = prefix .. '{' .. sections[section] .. '}:'
    local items = sections[section + 1]
    for at = 1, #items, 8 do
      local header, folded = take(items[at + 6]), take(items[at + 7])
      reply[#reply + 1] = rotate(slot_prefix, items[at], items[at + 1], items[at + 2], items[at + 3], items[at + 4],
        items[at + 5], header, folded)
    end
  end
  return cmsgpack.pack(reply)
end)
