-- For scripts that make output blocks durable, or give old ones a time to live, a part of them at a time. Such a script has
-- `prefix` (of the channel's slot) and `channel`. What is without a time to live, and no directory names it, stands in
-- fields of the channel: `p` "<group>:<blocks>:<Unix time>" is output of which the first blocks wait to be named; `s`
-- "<group>:<first>:<last>,..." are strays: no switch will name these blocks, or name them again.
local call = redis.call
local channel_key = prefix .. 'c:' .. channel

local function decimal(number)
  return string.format('%.0f', number)
end

local function block_key(group, number)
  key = prefix .. 'b:' .. group .. ':' .. decimal(number) .. ':' .. channel
  return key
end

local function are_there(group, first, sizes)
  for position, size in ipairs(sizes) do
    if call('STRLEN', block_key(group, first + position - 1)) ~= size then
      return false
    end
  end
  return true
end

local function persist(group, first, sizes)
  for position = 1, #sizes do
    call('PERSIST', block_key(group, first + position - 1))
  end
end

local function with_stray(strays, group, first, last)
  if last < first then
    return strays
  end
  local stray = group .. ':' .. decimal(first) .. ':' .. decimal(last)
  return strays == '' and stray or strays .. ',' .. stray
end

-- `strays`, and the blocks that were pending of a group other than `output`: that one's switch will be refused.
local function with_pending(strays, pending, output)
  local group, blocks = string.match(pending or '', '^([^:]+):(%d+):')
  if not group or group == output then
    return strays
  end
  return with_stray(strays, group, 0, tonumber(blocks) - 1)
end

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
