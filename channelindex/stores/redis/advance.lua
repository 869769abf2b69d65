-- Moves the stable clock of partitions forward; if it moved any, raises the stable counter once and publishes it to
-- those who wait. With no checkpoints at all, it only returns the partitions' epochs.
-- KEYS   1: stable counter, also the name of the pub/sub channel; 2: meta; 3 and on: partition records
-- ARGV   1: epoch of the owner, decimal; 2: ""; 3 and on, one per partition record: its changed checkpoints, 42 bytes each:
--           index of the vbucket in the partition (u16), vbuuid, seqno, snap_start, snap_end, sequence (u64)
-- reply  1 if the meta record is there, else 0, and nothing was changed; then per partition record the epoch that it has
--        (a string; "" if it is not there); where that is not ours, nothing of it was changed
-- atomic all of it; a checkpoint whose seqno is lower than the present one is ignored
local CHECKPOINT = 40

-- Whether the seqno of one checkpoint is lower than the other's; in halves, because Lua's numbers are doubles.
local function is_lower(checkpoint, than)
  local _, _, high, low = struct.unpack('>I4I4I4I4', checkpoint)
  local _, _, than_high, than_low = struct.unpack('>I4I4I4I4', than)
  return high < than_high or (high == than_high and low < than_low)
end

local function advance(record, changes)
  local checkpoints = redis.call('HGET', record, 'ck')
  for at = 1, #changes, CHECKPOINT + 2 do
    local first = struct.unpack('>I2', changes, at) * CHECKPOINT
    local checkpoint = string.sub(changes, at + 2, at + 1 + CHECKPOINT)
    if not is_lower(checkpoint, string.sub(checkpoints, first + 1, first + CHECKPOINT)) then
      checkpoints = string.sub(checkpoints, 1, first) .. checkpoint .. string.sub(checkpoints, first + 1 + CHECKPOINT)
    end
  end
  redis.call('HSET', record, 'ck', checkpoints)
  redis.call('HINCRBY', record, 'v', 1)
end

local there, moved = redis.call('EXISTS', KEYS[2]), false
local reply = {there}
for partition = 3, #KEYS do
  local epoch = redis.call('HGET', KEYS[partition], 'epoch') or ''
  if there == 1 and epoch == ARGV[1] and ARGV[partition] ~= '' then
    advance(KEYS[partition], ARGV[partition])
    moved = true
  end
  reply[partition - 1] = epoch
end
if moved then
  redis.call('PUBLISH', KEYS[1], redis.call('INCR', KEYS[1]))
end
return reply
