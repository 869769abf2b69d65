-- What a person orders of the nodes, and the waking of nodes that have something to do.
--
-- KEYS     see shared.lua
-- ARGV[1]  msgpack [what, arguments, prefix, wake]: the nodes in wake are woken on the channel <prefix><name>
--            drain, undrain   [node, ...]
--            release          [partition, ...]
--            scale            [node, incarnation, feed workers, batch writers]
--            wake             []
-- Reply    how much of it was not so before
-- include shared.lua

local what, arguments, prefix, wake = unpack(cmsgpack.unpack(ARGV[1]))
local n_changed = 0

if what == 'drain' or what == 'undrain' then
  for _, name in ipairs(arguments) do
    if redis.call(what == 'drain' and 'SADD' or 'SREM', KEYS[7], name) == 1 then
      n_changed = n_changed + 1
      note(what == 'drain' and 'node.drained' or 'node.undrained', name, '')
    end
  end
elseif what == 'release' then
  for _, partition in ipairs(arguments) do
    n_changed = n_changed + redis.call('HSET', KEYS[8], partition, now)
  end
  changed = n_changed > 0
elseif what == 'scale' then
  local name, incarnation, feeds, writers = unpack(arguments)
  redis.call('HSET', KEYS[9], name, cmsgpack.pack({incarnation, feeds, writers}))
  note('node.scaled', name, feeds .. ' feed workers, ' .. writers .. ' batch writers')
  n_changed = 1
end

if changed then next_version() end
for _, name in ipairs(wake) do redis.call('PUBLISH', prefix .. name, what) end
return n_changed
