-- Replaces the beginning of a partition's archive of epoch starts.
-- KEYS   1: archive
-- ARGV   1: the beginning as it was read; 2: what takes its place
-- reply  1 if it was replaced, 0 if the archive begins otherwise
-- atomic all of it; what was appended since stays
local archive = redis.call('GET', KEYS[1]) or ''
if string.sub(archive, 1, #ARGV[1]) ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[2] .. string.sub(archive, #ARGV[1] + 1))
return 1
