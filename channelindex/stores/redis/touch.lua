-- Appends to the active blocks of channels whose writer does not know them, and tells which blocks these are.
-- KEYS   none, on a cluster the prefix of the slot; the channels' keys are built here (KEYSPACE.md)
-- ARGV   1: prefix of the index
--        2: MessagePack [slot, items, slot, items, ...]; items are flat, six per touch: channel, group, epoch (16 hex
--           digits, so that they compare as strings), lengths of the header frame of block 0, of the frame, of the
--           clock record
--        3: all these headers, frames and clock records one after the other
-- reply  MessagePack [number, size, ...] in the order of the touches; number is a string, "" where it was refused
-- atomic per touch: refused if the directory names a newer epoch; else frame, clock record, directory (which names
--        this epoch from now on) and counter
-- include errors.lua
local prefix, sections, body = ARGV[1], cmsgpack.unpack(ARGV[2]), ARGV[3]
local call = redis.call
local start = 1

local function take(length)
  start = start + length
  return string.sub(body, start - length, start - 1)
end

local function touch(slot_prefix, channel, group, epoch, header, frame, record)
  local channel_key, field = slot_prefix .. 'c:' .. channel, 'g' .. group
  key = channel_key
  local active = call('HGET', channel_key, field)
  local number = '0'
  if active then
    local noted_epoch
    number, noted_epoch = string.match(active, '^(%d+):(%x+)$')
    if noted_epoch > epoch then
      return '', 0
    end
  end
  local block_key = slot_prefix .. 'b:' .. group .. ':' .. number .. ':' .. channel
  local clock_key = slot_prefix .. 'k:' .. group .. ':' .. channel
  local size
  if active then
    key = block_key
    size = call('APPEND', block_key, frame)
    key = clock_key
    call('APPEND', clock_key, record)
  else
    -- SET: what may lie there was appended blindly by a writer that had outlived the index of this name before.
    key = block_key
    size = #header + #frame
    call('SET', block_key, header .. frame)
    key = clock_key
    call('SET', clock_key, record)
  end
  key = channel_key
  call('HSET', channel_key, field, number .. ':' .. epoch)
  call('HINCRBY', channel_key, 'n', 1)
  return number, size
end

return with_key_in_error(function()
  local reply = {}
  for section = 1, #sections, 2 do
    local slot_prefix = prefix .. '{' .. sections[section] .. '}:'
    local items = sections[section + 1]
    for at = 1, #items, 6 do
      local header, frame, record = take(items[at + 3]), take(items[at + 4]), take(items[at + 5])
      local number, size = touch(slot_prefix, items[at], items[at + 1], items[at + 2], header, frame, record)
      reply[#reply + 1] = number
      reply[#reply + 1] = size
    end
  end
  return cmsgpack.pack(reply)
end)
