-- Blind appends to known blocks. Each moves a channel's block, clock and counter at once. Nothing is read.
-- KEYS   none, on a cluster the prefix of the slot; the blocks' keys are built here (KEYSPACE.md), because a thousand
--        of them cost more than the script
-- ARGV   1: prefix of the index ("ci:<name>:")
--        2: MessagePack [slot, items, slot, items, ...]; items are flat: the end of a block's key (group, number,
--           channel), length of its frame
--        3: all these frames one after the other (Redis' cmsgpack knows no binary strings)
-- reply  MessagePack [end of a key, ...] of the blocks that did not exist, to which nothing was appended
-- atomic all of it
-- include errors.lua
local prefix, sections, body = ARGV[1], cmsgpack.unpack(ARGV[2]), ARGV[3]
local call, sub = redis.call, string.sub

return with_key_in_error(function()
  local start, lost = 1, {}
  for section = 1, #sections, 2 do
    local block_prefix = prefix .. '{' .. sections[section] .. '}:b:'
    local items = sections[section + 1]
    for at = 1, #items, 2 do
      local length = items[at + 1]
      key = block_prefix .. items[at]
      if call('APPEND', key, sub(body, start, start + length - 1)) == length then
        call('DEL', key) -- a block begins with a header: this one was lost, and must not seem to be there
        lost[#lost + 1] = items[at]
      end
      start = start + length
    end
  end
  return cmsgpack.pack(lost)
end)
