-- For scripts that give strays a time to live. Such a script includes strays.lua before.
-- Give at most `most` of `strays` so many ms to live; the others.
local function expire(strays, ms, most)
  local left = ''
  for group, first, last in string.gmatch(strays, '([^:,]+):(%d+):(%d+)') do
    first, last = tonumber(first), tonumber(last)
    while first <= last and most > 0 do
      call('PEXPIRE', block_key(group, first), ms)
      first, most = first + 1, most - 1
    end
    left = with_stray(left, group, first, last)
  end
  return left
end
