-- Gives a lock back that is still its holder's.
--
-- KEYS[1]  lock
-- ARGV[1]  who holds it
-- Reply    1 if it was given back, 0 if it ran out before, and may be another's now

if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
