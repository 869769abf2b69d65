-- Takes back an append after which a block has nothing else: a block begins with a header, so this one was lost, or compacted.
-- KEYS   1: the block
-- ARGV   1: how many bytes were appended
-- reply  1 if it is gone, 0 if it has other bytes than these by now
-- atomic all of it
if redis.call('STRLEN', KEYS[1]) ~= tonumber(ARGV[1]) then
  return 0
end
return redis.call('DEL', KEYS[1])
