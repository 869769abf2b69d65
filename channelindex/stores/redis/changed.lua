-- Tells which channels are no longer as somebody noted them. Changes nothing.
-- KEYS   none, on a cluster the prefix of the slot
-- ARGV   1: MessagePack of one flat list. Per channel: key of its directory, number of fields in that, number of its
--           groups; per group: its field, the value of that, key of its active block, bytes in that
-- reply  a byte per channel: "1" where a directory or an active block is another, else "0"
-- atomic all of it
-- include errors.lua
local notes, call = cmsgpack.unpack(ARGV[1]), redis.call

return with_key_in_error(function()
  local at, changed = 1, {}
  while at <= #notes do
    key = notes[at]
    local next_channel = at + 3 + 4 * notes[at + 2]
    local is_changed = call('HLEN', key) ~= notes[at + 1]
    at = at + 3
    while at < next_channel and not is_changed do
      is_changed = call('HGET', key, notes[at]) ~= notes[at + 1] or call('STRLEN', notes[at + 2]) ~= notes[at + 3]
      at = at + 4
    end
    changed[#changed + 1] = is_changed and '1' or '0'
    at = next_channel
  end
  return table.concat(changed)
end)
