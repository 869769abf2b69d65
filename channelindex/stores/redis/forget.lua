-- Forgets a channel of which nothing is left, so that it may begin again.
-- KEYS   1: the names of the channel's slot; 2: the channel's directory
-- ARGV   1: channel
-- reply  1 or 0: whether it was forgotten
-- atomic only if there is no directory
if redis.call('EXISTS', KEYS[2]) == 1 then
  return 0
end
return redis.call('HDEL', KEYS[1], ARGV[1])
