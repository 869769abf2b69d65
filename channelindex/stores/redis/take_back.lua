-- Takes back an append to a block that was lost, or compacted: a block begins with a header, and this one does not.
-- KEYS   1: the block
-- ARGV   none
-- reply  1 if it is gone, 0 if it was not there, or begins with a header
-- atomic all of it
if redis.call('GETRANGE', KEYS[1], 0, 0) == 'H' then
  return 0
end
return redis.call('DEL', KEYS[1])
