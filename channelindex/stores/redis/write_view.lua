-- The stable view of the partition records that begin at KEYS[first]. Epochs are far below 2^53 (epoch.lua).
local function write_view(key, first)
  local parts = {}
  for partition = first, #KEYS do
    local epoch, checkpoints = unpack(redis.call('HMGET', KEYS[partition], 'epoch', 'ck'))
    parts[#parts + 1] = struct.pack('>I8', tonumber(epoch))
    for at = 9, #checkpoints, 40 do
      parts[#parts + 1] = string.sub(checkpoints, at, at + 7)
    end
  end
  redis.call('SET', key, table.concat(parts))
end
