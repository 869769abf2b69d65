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
--        from now on. Names follow at the end of each slot, also where one of its appends fails: nobody sees them apart
-- include errors.lua
-- include frames.lua

local function answer_of(number, size, upto, live)
  if number == '0' and upto == '0' and live == '0' then
    return size
  end
  return number .. ':' .. size .. ':' .. upto .. ':' .. live
end

local function begin_group(channel_key, field, number, block_key, epoch, frames, live)
  key = block_key
  if call('SETNX', block_key, frames) == 0 then
    return 'lost'
  end
  key = channel_key
  call('HSET', channel_key, field, number .. ':' .. epoch .. ':0:0:' .. number .. ':0')
  return answer_of(number, #frames, '0', live)
end

-- Of `frames`, `header_size` bytes are the header, the rest is appended. Returns the answer, and whether the name of the
-- channel is to be noted.
local function append_to(channel_key, field, directory, block_prefix, channel, epoch, header_size, frames, live)
  local number, noted_epoch, rest = string.match(directory, '^(%d+):(%x+)(:%d+:%d+:%d+:%d+)$')
  if noted_epoch > epoch then
    return '', false
  end
  key = block_prefix .. number .. ':' .. channel
  if call('GETRANGE', key, 0, 0) ~= 'H' then -- a block begins with a header
    return 'lost', false
  end
  local size = call('APPEND', key, string.sub(frames, header_size + 1))
  if noted_epoch ~= epoch then
    key = channel_key
    call('HSET', channel_key, field, number .. ':' .. epoch .. rest)
  end
  return answer_of(number, size, string.match(rest, '^:%d+:(%d+)'), live), noted_epoch ~= epoch
end

local function append(slot_prefix, channel, group, epoch, header_size, frames)
  local channel_key, field = slot_prefix .. 'c:' .. channel, 'g' .. group
  local block_prefix = slot_prefix .. 'b:' .. group .. ':'
  local directory, compacted, live, next_number = nil, nil, '0', '0'
  key = channel_key
  if call('HLEN', channel_key) > 0 then -- else there is nothing to read
    directory, compacted = unpack(call('HMGET', channel_key, field, 'v'))
  end
  if compacted then
    live, next_number = string.match(compacted, '^%d+:(%d+):%d+:(%d+)')
  end
  if directory then
    return append_to(channel_key, field, directory, block_prefix, channel, epoch, header_size, frames, live)
  end
  local block_key = block_prefix .. next_number .. ':' .. channel
  local answer = begin_group(channel_key, field, next_number, block_key, epoch, frames, live)
  return answer, answer ~= 'lost'
end

local function append_all(slot_prefix, items, names, reply)
  for at = 1, #items, 5 do
    local channel = items[at]
    local frames = take(items[at + 3] + items[at + 4])
    local answer, is_named = append(slot_prefix, channel, items[at + 1], items[at + 2], items[at + 3], frames)
    reply[#reply + 1] = answer
    if is_named then
      names[#names + 1] = channel
      names[#names + 1] = ''
    end
  end
end

return with_key_in_error(function()
  local reply = {}
  for section = 1, #sections, 2 do
    local slot_prefix = prefix .. '{' .. sections[section] .. '}:'
    local names = {}
    local ok, failure = pcall(append_all, slot_prefix, sections[section + 1], names, reply)
    if #names > 0 then -- in one command, which costs half of one for each
      key = ok and slot_prefix .. 'n' or key
      call('HSET', slot_prefix .. 'n', unpack(names))
    end
    if not ok then
      error(failure, 0)
    end
  end
  return cmsgpack.pack(reply)
end)
