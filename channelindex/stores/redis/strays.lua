-- For scripts that make output blocks durable (outputs.lua), or give old ones a time to live (expire.lua), a part of them
-- at a time. Such a script has `prefix` (of the channel's slot) and `channel`. What is without a time to live, and no
-- directory names it, stands in fields of the channel: `p` "<group>:<blocks>:<Unix time>" is output of which the first
-- blocks wait to be named; `s` "<group>:<first>:<last>,..." are strays: no switch will name these blocks, or name them
-- again.
local call = redis.call
local channel_key = prefix .. 'c:' .. channel

local function decimal(number)
  return string.format('%.0f', number)
end

local function block_key(group, number)
  key = prefix .. 'b:' .. group .. ':' .. decimal(number) .. ':' .. channel
  return key
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
