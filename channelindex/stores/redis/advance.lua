-- Moves the stable clock of partitions forward; if it moved any, raises the stable counter once and publishes it to
-- those who wait. With no checkpoints at all, it only returns the partitions' epochs.
-- KEYS   1: stable counter, also the name of the pub/sub channel; 2: meta; 3: stable view; 4 and on: partition records
-- ARGV   1: epoch of the owner, decimal; 2: where the part of each partition record begins in the stable view (u32 each);
--        3: ""; 4 and on, one per partition record: its changed checkpoints, 42 bytes each:
--           index of the vbucket in the partition (u16), vbuuid, seqno, snap_start, snap_end, sequence (u64)
-- reply  1 if the meta record is there, else 0; the same of the stable view; where one is not, nothing was changed. Then
--        per partition record the epoch that it has (a string; "" if it is not there); where that is not ours, nothing
--        of it was changed
-- atomic all of it; a checkpoint whose seqno is lower than the present one is ignored
-- include stable.lua
local CHECKPOINT, SEQNO = 40, 9
local sub = string.sub

-- Whether the seqno of one checkpoint is lower than the other's; in halves, because Lua's numbers are doubles.
local function is_lower(checkpoint, than)
  local high, low = struct.unpack('>I4I4', checkpoint, SEQNO)
  local than_high, than_low = struct.unpack('>I4I4', than, SEQNO)
  return high < than_high or (high == than_high and low < than_low)
end

local function advance(record, changes, offset)
  local stored = redis.call('HGET', record, 'ck')
  local checkpoints, seqnos = {}, {}
  for at = 1, #stored, CHECKPOINT do
    checkpoints[#checkpoints + 1] = sub(stored, at, at + CHECKPOINT - 1)
  end
  for at = 1, #changes, CHECKPOINT + 2 do
    local index = struct.unpack('>I2', changes, at) + 1
    local checkpoint = sub(changes, at + 2, at + 1 + CHECKPOINT)
    if not is_lower(checkpoint, checkpoints[index]) then
      checkpoints[index] = checkpoint
    end
  end
  for index, checkpoint in ipairs(checkpoints) do
    seqnos[index] = sub(checkpoint, SEQNO, SEQNO + 7)
  end
  redis.call('HSET', record, 'ck', table.concat(checkpoints))
  redis.call('HINCRBY', record, 'v', 1)
  redis.call('SETRANGE', KEYS[3], offset + 8, table.concat(seqnos)) -- behind the epoch
end

local has_meta, has_view, moved = redis.call('EXISTS', KEYS[2]), redis.call('EXISTS', KEYS[3]), false
local reply = {has_meta, has_view}
for partition = 4, #KEYS do
  local epoch = redis.call('HGET', KEYS[partition], 'epoch') or ''
  if has_meta == 1 and has_view == 1 and epoch == ARGV[1] and ARGV[partition] ~= '' then
    advance(KEYS[partition], ARGV[partition], (struct.unpack('>I4', ARGV[2], 4 * (partition - 4) + 1)))
    moved = true
  end
  reply[partition - 1] = epoch
end
if moved then
  raise_stable_counter(KEYS[1])
end
return reply
