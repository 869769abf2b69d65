-- Creates the index unless it exists: its meta record, the records of all its partitions, and their stable view.
-- KEYS   1: meta; 2: stable view; 3 and on: the partition records, by partition
-- ARGV   1: meta record; 2: checkpoints of a partition that nobody owned yet; 3: UUID of the index
-- reply  the meta record that is there now; "" where there is none, though partition records are: nothing was written
-- atomic all of it: whoever sees the meta record sees all partition records, so a missing one is a loss, not a beginning
-- include record.lua
-- include write_view.lua
local meta = redis.call('GET', KEYS[1])
if meta then
  return meta
end
for partition = 3, #KEYS do
  if redis.call('EXISTS', KEYS[partition]) == 1 then
    return ''
  end
end
for partition = 3, #KEYS do
  write_new_record(KEYS[partition], ARGV[2], ARGV[3])
end
write_view(KEYS[2], 3)
redis.call('SET', KEYS[1], ARGV[1])
return ARGV[1]
