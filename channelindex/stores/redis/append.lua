-- Blind appends to known blocks: per channel the frames, then the clock records, then the counter. Nothing is read.
-- KEYS   none, on a cluster the prefix of the slot; the channels' keys are built here (KEYSPACE.md), because a thousand
--        of them cost more than the script
-- ARGV   1: prefix of the index ("ci:<name>:")
--        2: MessagePack [slot, items, slot, items, ...]; items are flat: channel, number of groups, then per group
--           its name, block number (a string: Lua's numbers are doubles), length of the frame, of the clock record
--        3: all these frames and clock records one after the other, per channel first the frames (Redis' cmsgpack knows no binary strings)
-- reply  0
-- atomic all of it
-- include errors.lua
local prefix, sections, body = ARGV[1], cmsgpack.unpack(ARGV[2]), ARGV[3]
local call, sub = redis.call, string.sub

return with_key_in_error(function()
  local start = 1
  for section = 1, #sections, 2 do
    local slot_prefix = prefix .. '{' .. sections[section] .. '}:'
    local block_prefix, clock_prefix, channel_prefix = slot_prefix .. 'b:', slot_prefix .. 'k:', slot_prefix .. 'c:'
    local items = sections[section + 1]
    local at, last = 1, #items
    while at < last do
      local channel, n_groups = items[at], items[at + 1]
      local first, final = at + 2, at + 2 + (n_groups - 1) * 4
      for group = first, final, 4 do
        key = block_prefix .. items[group] .. ':' .. items[group + 1] .. ':' .. channel
        call('APPEND', key, sub(body, start, start + items[group + 2] - 1))
        start = start + items[group + 2]
      end
      for group = first, final, 4 do
        key = clock_prefix .. items[group] .. ':' .. channel
        call('APPEND', key, sub(body, start, start + items[group + 3] - 1))
        start = start + items[group + 3]
      end
      key = channel_prefix .. channel
      call('HINCRBY', key, 'n', 1)
      at = final + 4
    end
  end
  return 0
end)
