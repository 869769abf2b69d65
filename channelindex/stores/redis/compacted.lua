-- Raises the seqnos of a partition up to which it is compacted.
-- KEYS   1: partition record
-- ARGV   1: epoch of the view by which it is compacted, decimal; 2: seqnos as they were read; 3: the new ones
-- reply  the epoch of the record if it is another one, or there is none (""); 1 if the seqnos were replaced, 0 if they
--        are not as they were read
-- atomic all of it
local epoch, through = unpack(redis.call('HMGET', KEYS[1], 'epoch', 'through'))
if epoch ~= ARGV[1] then
  return epoch or ''
end
if through ~= ARGV[2] then
  return 0
end
redis.call('HSET', KEYS[1], 'through', ARGV[3])
redis.call('HINCRBY', KEYS[1], 'v', 1)
return 1
