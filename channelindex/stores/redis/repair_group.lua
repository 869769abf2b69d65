-- Puts back what the store has lost of one group of a channel.
-- KEYS   1: the channel's directory; then blocks of the group
-- ARGV   1: group; 2: its directory as it was read, "" for none; 3: directory to be, "" for none; 4: clock frame, "" for none; 5: what
--        compaction notes of the channel, 6: its floor, both only where it has no such note, "" for none; then per
--        block: how many bytes it had, 0 for none, and what it is to be
-- reply  1 or 0: whether it happened
-- atomic all of it, only if directory and blocks are as they were read: a block only grows, so its size says it; and only
--        if the group is not output that waits to be named (strays.lua)
local field = 'g' .. ARGV[1]
if (redis.call('HGET', KEYS[1], field) or '') ~= ARGV[2] then
  return 0
end
if string.match(redis.call('HGET', KEYS[1], 'p') or '', '^[^:]+') == ARGV[1] then
  return 0
end
for at = 2, #KEYS do
  if redis.call('STRLEN', KEYS[at]) ~= tonumber(ARGV[2 * at + 3]) then
    return 0
  end
end
for at = 2, #KEYS do
  redis.call('SET', KEYS[at], ARGV[2 * at + 4])
end
if ARGV[3] == '' then
  redis.call('HDEL', KEYS[1], field, 'k' .. ARGV[1])
  return 1
end
redis.call('HSET', KEYS[1], field, ARGV[3])
if ARGV[4] ~= '' then
  redis.call('HSET', KEYS[1], 'k' .. ARGV[1], ARGV[4])
end
if ARGV[5] ~= '' and not redis.call('HGET', KEYS[1], 'v') then
  redis.call('HSET', KEYS[1], 'v', ARGV[5])
  if ARGV[6] ~= '' then
    redis.call('HSET', KEYS[1], 'f', ARGV[6])
  end
end
return 1
