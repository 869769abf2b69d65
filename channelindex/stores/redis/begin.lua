-- Replaces a partition record if it is still the one that the new one was made from.
-- KEYS   1: partition record; 2: its archive; 3: stable view; 4: stable counter
-- ARGV   1: expected v; then the new 2: epoch, 3: owner, 4: ck, 5: hist, 6: archived, 7: through, 8: restart; 9: what
--        moves to the archive; 10: where the partition's part of the stable view begins; 11: that part; 12: digest
--        of the servers that have all up to ck; 13: "1" to wake those who wait, because the stable clock goes back
-- reply  1 if it was replaced, 0 if somebody changed it meanwhile, -1 if the stable view is missing
-- atomic the comparison and the replacement, with archive, stable view and stable counter
-- include stable.lua
if redis.call('HGET', KEYS[1], 'v') ~= ARGV[1] then
  return 0
end
if redis.call('EXISTS', KEYS[3]) == 0 then
  return -1
end
if ARGV[9] ~= '' then
  redis.call('APPEND', KEYS[2], ARGV[9])
end
redis.call('HINCRBY', KEYS[1], 'v', 1)
redis.call('HSET', KEYS[1], 'epoch', ARGV[2], 'owner', ARGV[3], 'ck', ARGV[4], 'hist', ARGV[5], 'archived', ARGV[6],
  'through', ARGV[7], 'restart', ARGV[8], 'servers', ARGV[12])
redis.call('SETRANGE', KEYS[3], ARGV[10], ARGV[11])
if ARGV[13] == '1' then
  raise_stable_counter(KEYS[4])
end
return 1
