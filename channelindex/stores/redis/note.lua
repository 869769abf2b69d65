-- Adds a moment to the timeline of a partition.
-- KEYS   1: partition record; 2: its timeline
-- ARGV   1: epoch of the owner, decimal; 2: field of the moment; 3: the moment; 4 and on: fields that it supersedes
-- reply  1 if it was added, 0 if another epoch has begun since its checkpoints were read, or the record is gone
-- atomic all of it
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then
  return 0
end
for at = 4, #ARGV do
  redis.call('HDEL', KEYS[2], ARGV[at])
end
redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
return 1
