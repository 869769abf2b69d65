-- Raises the counters of principals, and their sum (field "").
-- KEYS   1: hash of the principals' counters
-- ARGV   1: MessagePack [document key, ...]
-- reply  0
-- atomic all of it
local names = cmsgpack.unpack(ARGV[1])
for _, name in ipairs(names) do
  redis.call('HINCRBY', KEYS[1], name, 1)
end
redis.call('HINCRBY', KEYS[1], '', #names)
return 0
