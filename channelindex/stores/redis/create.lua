-- Creates the index unless it exists: its meta record and the records of all its partitions.
-- KEYS   1: meta; 2 and on: the partition records, by partition
-- ARGV   1: meta record; 2: checkpoints of a partition that nobody owned yet
-- reply  the meta record that is there now
-- atomic all of it: whoever sees the meta record sees all partition records, so a missing one is a loss, not a beginning
local meta = redis.call('GET', KEYS[1])
if meta then
  return meta
end
for partition = 2, #KEYS do
  redis.call('HSET', KEYS[partition], 'v', 0, 'epoch', 0, 'owner', '', 'ck', ARGV[2], 'hist', '', 'archived', 0)
end
redis.call('SET', KEYS[1], ARGV[1])
return ARGV[1]
