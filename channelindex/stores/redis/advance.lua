-- Moves the stable clock of partitions forward; if it moved any, raises the stable counter once and publishes it to
-- those who wait. With no checkpoints at all, it only compares the partitions' epochs.
-- KEYS   1: stable counter, also the name of the pub/sub channel; 2: meta; 3: stable view; 4 and on: partition records
-- ARGV   1: epoch of the owner, decimal
--        2: where the part of each partition record begins in the stable view (u32 each)
--        3: the changed checkpoints, 44 bytes each, those of one partition record one after the other, ascending: place of
--           the record among them (u16, from 0 on), index of the vbucket in the partition (u16), vbuuid, seqno,
--           snap_start, snap_end, sequence (u64)
-- reply  one line: 1 if the meta record is there, else 0; the same of the stable view; where one is not, nothing was
--        changed. Then, of each partition record whose epoch is not ours, or of all where nothing was changed, its place
--        among them (from 0 on), ":" and the epoch that it has, nothing if it is not there; where that is not ours,
--        nothing of it was changed
-- atomic all of it; a checkpoint whose seqno is lower than the present one is ignored
-- include stable.lua
local CHECKPOINT, SEQNO, CHANGE = 40, 8, 44
local call, sub, unpack_struct = redis.call, string.sub, struct.unpack
local changes = ARGV[3]

-- Whether the seqno of the checkpoint at `change` is lower than that of the stored one; in halves, because Lua's numbers
-- are doubles.
local function is_lower(change, stored, place)
  local high, low = unpack_struct('>I4I4', changes, change + SEQNO)
  local than_high, than_low = unpack_struct('>I4I4', stored, place + SEQNO)
  return high < than_high or (high == than_high and low < than_low)
end

-- `stored` with the changes from `start` to before `stop`, and the places of the first and the last checkpoint that
-- changed; none: `stored`.
local function merged(stored, start, stop)
  local parts, copied, first, last = {}, 0, nil, nil
  for at = start, stop - 1, CHANGE do
    local place, change = unpack_struct('>I2', changes, at + 2) * CHECKPOINT + 1, at + 4
    if not is_lower(change, stored, place) then
      parts[#parts + 1] = sub(stored, copied + 1, place - 1)
      parts[#parts + 1] = sub(changes, change, change + CHECKPOINT - 1)
      copied, first, last = place + CHECKPOINT - 1, first or place, place
    end
  end
  parts[#parts + 1] = sub(stored, copied + 1)
  return table.concat(parts), first, last
end

-- Applies the changes from `start` to before `stop` to the record with these checkpoints and this version.
local function advance(record, stored, version, start, stop, view_offset)
  local checkpoints, first, last = merged(stored, start, stop)
  call('HSET', record, 'ck', checkpoints, 'v', string.format('%.0f', version + 1))
  if first then
    local seqnos = {}
    for place = first, last, CHECKPOINT do
      seqnos[#seqnos + 1] = sub(checkpoints, place + SEQNO, place + SEQNO + 7)
    end
    local index = (first - 1) / CHECKPOINT
    call('SETRANGE', KEYS[3], view_offset + 8 + 8 * index, table.concat(seqnos)) -- behind the epoch
  end
end

-- The changes of a partition record, by its place: where they begin and where they end.
local starts, stops = {}, {}
for at = 1, #changes, CHANGE do
  local place = unpack_struct('>I2', changes, at)
  starts[place] = starts[place] or at
  stops[place] = at + CHANGE
end

local has_meta, has_view, moved = call('EXISTS', KEYS[2]), call('EXISTS', KEYS[3]), false
local reply = {has_meta, has_view}
for place = 0, #KEYS - 4 do
  local record, start = KEYS[place + 4], starts[place]
  local epoch, stored, version
  if not start then
    epoch = call('HGET', record, 'epoch') or ''
  else
    epoch, stored, version = unpack(call('HMGET', record, 'epoch', 'ck', 'v'))
    epoch = epoch or ''
  end
  if has_meta == 0 or has_view == 0 or epoch ~= ARGV[1] then
    reply[#reply + 1] = place .. ':' .. epoch
  elseif start then
    advance(record, stored, version, start, stops[place], (unpack_struct('>I4', ARGV[2], 4 * place + 1)))
    moved = true
  end
end
if moved then
  raise_stable_counter(KEYS[1])
end
return {ok = table.concat(reply, ' ')}
