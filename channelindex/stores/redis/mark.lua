-- Sets the mark of an owner in a slot, in place of one that it set before.
-- KEYS   1: prefix of the slot, which no key has; the marks' key is built here (KEYSPACE.md)
-- ARGV   1: epoch of the owner; 2: the lowest number that may be there, 0 for none; 3: the new number
-- reply  1 if it was set, 0 if the slot has a lower number: it has lost what it had acknowledged
-- atomic all of it
local marks = KEYS[1] .. 'm'
local found = tonumber(redis.call('HGET', marks, ARGV[1]) or 0)
if found < tonumber(ARGV[2]) or found >= tonumber(ARGV[3]) then
  return 0
end
redis.call('HSET', marks, ARGV[1], ARGV[3])
return 1
