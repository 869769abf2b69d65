-- Takes back an append to a block that was lost, or compacted: a block begins with a header, and this one does not.
-- KEYS   1: the block
-- ARGV   none
-- reply  1 if it is not there now, 0 if it begins with a header: it was not lost
-- atomic all of it
if redis.call('GETRANGE', KEYS[1], 0, 0) == 'H' then
  return 0
end
redis.call('DEL', KEYS[1])
return 1
