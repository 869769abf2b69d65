-- Gives back the room that APPEND reserved behind blocks, up to half of each, where it is worth it.
-- KEYS   the blocks
-- ARGV   none
-- reply  how many were made anew; none where the server does not report what it uses
-- atomic per block: its bytes and its time to live stay as they are
local OVERHEAD, SHARE = 80, 1.3 -- of a key; of its name and value, with what allocators round up to
local n_trimmed = 0
for _, block in ipairs(KEYS) do
  local size = redis.call('STRLEN', block) -- first: it ends a block whose time has come, whose size MEMORY still reports
  local used = redis.pcall('MEMORY', 'USAGE', block)
  if type(used) == 'table' then -- an error: hosted servers may lack the command, and a user the right to it
    return n_trimmed
  end
  if used and used > (size + #block) * SHARE + OVERHEAD then
    redis.call('SET', block, redis.call('GET', block), 'KEEPTTL')
    n_trimmed = n_trimmed + 1
  end
end
return n_trimmed
