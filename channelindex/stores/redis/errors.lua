-- For scripts that touch many keys: an error names the key at which it happened. A script sets `key` before each call
-- and returns `with_key_in_error(function() ... end)`.
local key = ''

local function with_key_in_error(run)
  local ok, result = pcall(run)
  if ok then
    return result
  end
  local message = type(result) == 'table' and result.err or result
  return redis.error_reply('ERR at key ' .. key .. ': ' .. message)
end
