-- Appends to the active blocks of channels whose writer does not know them, and returns which blocks these are.
-- KEYS   none, on a cluster the prefix of the slot; the channels' keys are built here (KEYSPACE.md)
-- ARGV   1: prefix of the index
--        2: MessagePack [slot, items, slot, items, ...]; items are flat, five per append: channel, group, epoch (16
--           hex digits, so that they compare as strings), lengths of the header frame of block 0 and of the frame
--        3: all these headers and frames one after the other
-- reply  MessagePack, an answer per append in their order: the size of a block 0 of which nothing is summed up, in a
--        channel that was never compacted; of another block "<number>:<size>:<upto>:<live>"; "" where the append was
--        refused; "lost" where the block that should be there, or its directory, is not
-- atomic per append: refused if the directory names a newer epoch; else frame, and directory, which names this epoch
--        from now on
-- include errors.lua
-- include frames.lua

local function answer_of(number, size, upto, live)
  if number == '0' and upto == '0' and live == '0' then
    return size
  end
  return number .. ':' .. size .. ':' .. upto .. ':' .. live
end

local function begin_group(slot_prefix, channel, field, number, block_key, epoch, frames, live)
  key = block_key
  if not call('SET', block_key, frames, 'NX') then
    return 'lost'
  end
  key = slot_prefix .. 'n'
  call('HSET', key, channel, '') -- first: a name without a directory is a directory that was lost
  key = slot_prefix .. 'c:' .. channel
  call('HSET', key, field, number .. ':' .. epoch .. ':0:0:' .. number .. ':0')
  return answer_of(number, #frames, '0', live)
end

-- `frames` are the header, of `header_size` bytes, and the frame.
local function append(slot_prefix, channel, group, epoch, header_size, frames)
  local channel_key, field = slot_prefix .. 'c:' .. channel, 'g' .. group
  local block_prefix = slot_prefix .. 'b:' .. group .. ':'
  key = channel_key
  local directory, compacted = unpack(call('HMGET', channel_key, field, 'v'))
  local live, next_number = '0', '0'
  if compacted then
    live, next_number = string.match(compacted, '^%d+:(%d+):%d+:(%d+)')
  end
  if not directory then
    local block_key = block_prefix .. next_number .. ':' .. channel
    return begin_group(slot_prefix, channel, field, next_number, block_key, epoch, frames, live)
  end
  local number, noted_epoch, rest = string.match(directory, '^(%d+):(%x+)(:%d+:%d+:%d+:%d+)$')
  if noted_epoch > epoch then
    return ''
  end
  key = block_prefix .. number .. ':' .. channel
  if call('GETRANGE', key, 0, 0) ~= 'H' then -- a block begins with a header
    return 'lost'
  end
  local size = call('APPEND', key, string.sub(frames, header_size + 1))
  if noted_epoch ~= epoch then
    key = slot_prefix .. 'n'
    call('HSET', key, channel, '') -- again: the names may have been lost
    key = channel_key
    call('HSET', channel_key, field, number .. ':' .. epoch .. rest)
  end
  return answer_of(number, size, string.match(rest, '^:%d+:(%d+)'), live)
end

return with_key_in_error(function()
  local reply = {}
  for section = 1, #sections, 2 do
    local slot_prefix = prefix .. '{' .. sections[section] .. '}:'
    local items = sections[section + 1]
    for at = 1, #items, 5 do
      local frames = take(items[at + 3] + items[at + 4])
      reply[#reply + 1] = append(slot_prefix, items[at], items[at + 1], items[at + 2], items[at + 3], frames)
    end
  end
  return cmsgpack.pack(reply)
end)
