-- Writes the meta record if there is none, and partition records anew, whatever is there.
-- KEYS   1: meta; then per partition its record, its archive and its timeline
-- ARGV   1: meta record; 2: checkpoints of a partition that nobody owned yet; 3: UUID of the index; 4: "1" to replace a
--        meta record that is there
-- reply  the meta record that is there now
-- atomic all of it
-- include record.lua
if ARGV[4] == '1' then
  redis.call('DEL', KEYS[1])
end
redis.call('SET', KEYS[1], ARGV[1], 'NX')
for at = 2, #KEYS, 3 do
  redis.call('DEL', KEYS[at], KEYS[at + 1], KEYS[at + 2])
  write_new_record(KEYS[at], ARGV[2], ARGV[3])
end
return redis.call('GET', KEYS[1])
