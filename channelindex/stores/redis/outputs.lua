-- For scripts that make output blocks durable. Such a script includes strays.lua before.
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
