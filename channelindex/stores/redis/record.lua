-- The record of a partition that nobody has owned yet. It names the index, so that a lost meta record can be restored.
local function write_new_record(key, checkpoints, index_uuid)
  redis.call('HSET', key, 'v', 0, 'epoch', 0, 'owner', '', 'ck', checkpoints, 'hist', '', 'archived', 0, 'through', '',
    'restart', '', 'servers', 0, 'index', index_uuid)
end
