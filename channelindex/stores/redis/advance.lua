-- Moves the stable clock of partitions forward; if it moved any, raises the stable counter once and publishes it to
-- those who wait. With no checkpoints at all, it only compares the partitions' epochs.
-- KEYS   1: stable counter, also the name of the pub/sub channel; 2: meta; 3: stable view; 4 and on: partition records
-- ARGV   1: epoch of the owner, decimal
--        2: where the part of each partition record begins in the stable view (u32 each)
--        3: how many checkpoints of each partition record change (u16 each)
--        4: these checkpoints, 42 bytes each, those of one partition record after the other, ascending: index of the vbucket
--           in the partition (u16), vbuuid, seqno, snap_start, snap_end, sequence (u64)
-- reply  one line: 1 if the meta record is there, else 0; the same of the stable view; where one is not, nothing was
--        changed. Then, of each partition record whose epoch is not ours, or of all where nothing was changed, its place
--        among them (from 0 on), ":" and the epoch that it has, nothing if it is not there; where that is not ours,
--        nothing of it was changed
-- atomic all of it; a checkpoint whose seqno is lower than the present one is ignored
-- include stable.lua
local CHECKPOINT, SEQNO, CHANGE = 40, 8, 42
local call, sub, unpack_struct, concat = redis.call, string.sub, struct.unpack, table.concat
local offsets, counts, changes = ARGV[2], ARGV[3], ARGV[4]

-- The place in `stored` of the checkpoint that the change at `at` replaces; nil where its seqno is lower. Compared are
-- halves of seqnos, because Lua's numbers are doubles.
local function place_of(at, stored)
  local index, high, low = unpack_struct('>I2xxxxxxxxI4I4', changes, at)
  local place = index * CHECKPOINT + 1
  local than_high, than_low = unpack_struct('>I4I4', stored, place + SEQNO)
  if high > than_high or (high == than_high and low >= than_low) then
    return place
  end
end

-- `stored` with the changes from `start` to before `stop`, and the places of the first and the last checkpoint that
-- changed; none: `stored`. Strings are what costs most here, so one change, as most records have, makes few.
local function merged(stored, start, stop)
  if stop - start == CHANGE then
    local place = place_of(start, stored)
    if not place then
      return stored
    end
    local change = sub(changes, start + 2, stop - 1)
    return sub(stored, 1, place - 1) .. change .. sub(stored, place + CHECKPOINT), place, place
  end
  local parts, n, copied, first, last = {}, 0, 0, nil, nil
  for at = start, stop - 1, CHANGE do
    local place = place_of(at, stored)
    if place then
      parts[n + 1] = sub(stored, copied + 1, place - 1)
      parts[n + 2] = sub(changes, at + 2, at + CHANGE - 1)
      n, copied, first, last = n + 2, place + CHECKPOINT - 1, first or place, place
    end
  end
  parts[n + 1] = sub(stored, copied + 1)
  return concat(parts), first, last
end

-- The seqnos of the checkpoints from the place `first` to `last`, as the stable view has them.
local function seqnos_of(checkpoints, first, last)
  if first == last then
    return sub(checkpoints, first + SEQNO, first + SEQNO + 7)
  end
  local seqnos = {}
  for place = first, last, CHECKPOINT do
    seqnos[#seqnos + 1] = sub(checkpoints, place + SEQNO, place + SEQNO + 7)
  end
  return concat(seqnos)
end

local has_meta, has_view, moved = call('EXISTS', KEYS[2]), call('EXISTS', KEYS[3]), false
local reply, stop = {has_meta, has_view}, 1
for place = 0, #KEYS - 4 do
  local record, start = KEYS[place + 4], stop
  local epoch, stored, version
  stop = start + CHANGE * unpack_struct('>I2', counts, 2 * place + 1)
  if start == stop then
    epoch = call('HGET', record, 'epoch') or ''
  else
    epoch, stored, version = unpack(call('HMGET', record, 'epoch', 'ck', 'v'))
    epoch = epoch or ''
  end
  if has_meta == 0 or has_view == 0 or epoch ~= ARGV[1] then
    reply[#reply + 1] = place .. ':' .. epoch
  elseif start < stop then
    local checkpoints, first, last = merged(stored, start, stop)
    call('HSET', record, 'ck', checkpoints, 'v', string.format('%d', version + 1))
    if first then
      local index = (first - 1) / CHECKPOINT
      local offset = unpack_struct('>I4', offsets, 4 * place + 1) + 8 + 8 * index -- behind the epoch
      call('SETRANGE', KEYS[3], offset, seqnos_of(checkpoints, first, last))
    end
    moved = true
  end
end
if moved then
  raise_stable_counter(KEYS[1])
end
return {ok = concat(reply, ' ')}
