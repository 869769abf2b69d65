-- For scripts whose arguments are 1: prefix of the index, 2: MessagePack [slot, items, slot, items, ...], 3: frames one after
-- the other. `take(length)` returns the next of these.
local prefix, sections, body = ARGV[1], cmsgpack.unpack(ARGV[2]), ARGV[3]
local call = redis.call
local start = 1

local function take(length)
  start = start + length
  return string.sub(body, start - length, start - 1)
end
