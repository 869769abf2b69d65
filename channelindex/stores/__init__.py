"""Opens the index store that the settings name. Nothing outside this folder knows which one it is.

Every URL of `channelindex.redis_url` is Redis, one server or a cluster; `memory://` is this process's own memory, where
equal URL and index name mean the same index. `couchbase://` and `couchbases://` (TLS) are a bucket; its SDK is imported
only where one is used, because it takes longer to import than all of ours.
"""

from collections import defaultdict
from urllib.parse import urlsplit

from channelindex.errors import ConfigInvalid
from channelindex.redis_url import SCHEMES as REDIS_SCHEMES
from channelindex.settings import IndexSettings
from channelindex.stores.base import IndexReader, IndexWriter, OwnerStore
from channelindex.stores.block_writer import BlockWriter
from channelindex.stores.memory import MemoryIndex, MemoryOwner, MemoryReader, memory_writer
from channelindex.stores.redis.owner import RedisOwner
from channelindex.stores.redis.reader import RedisReader
from channelindex.stores.redis.writer import RedisBlocks

__all__ = ["SCHEMES", "open_owner", "open_reader", "open_writer"]

_COUCHBASE = ("couchbase", "couchbases")
SCHEMES = (*REDIS_SCHEMES, *_COUCHBASE, "memory")

_memory_indexes: dict[tuple[str, str], MemoryIndex] = defaultdict(MemoryIndex)


def open_writer(settings: IndexSettings) -> IndexWriter:
    """The write half of an index; a block that has reached `block_bytes` is followed by a new one. Connects lazily.

    Raises:
        ConfigInvalid: `store` names no store that we know.
    """
    if _scheme(settings) in REDIS_SCHEMES:
        return BlockWriter(RedisBlocks(settings.store, settings.name), settings.block_bytes)
    if _scheme(settings) in _COUCHBASE:
        from channelindex.stores.couchbase.writer import CouchbaseBlocks  # noqa: PLC0415 see above

        return BlockWriter(CouchbaseBlocks(settings), settings.block_bytes)
    return memory_writer(_memory_index(settings), settings.block_bytes)


def open_owner(settings: IndexSettings) -> OwnerStore:
    """The owner's half of an index; as `open_writer`."""
    if _scheme(settings) in REDIS_SCHEMES:
        return RedisOwner(settings.store, settings.name)
    if _scheme(settings) in _COUCHBASE:
        from channelindex.stores.couchbase.owner import CouchbaseOwner  # noqa: PLC0415 see above

        return CouchbaseOwner(settings)
    return MemoryOwner(_memory_index(settings), settings.name)


def open_reader(settings: IndexSettings) -> IndexReader:
    """The read half of an index; as `open_writer`."""
    if _scheme(settings) in REDIS_SCHEMES:
        return RedisReader(settings.store, settings.name)
    if _scheme(settings) in _COUCHBASE:
        from channelindex.stores.couchbase.reader import CouchbaseReader  # noqa: PLC0415 see above

        return CouchbaseReader(settings)
    return MemoryReader(_memory_index(settings), settings.name)


def _memory_index(settings: IndexSettings) -> MemoryIndex:
    return _memory_indexes[settings.store, settings.name]


def _scheme(settings: IndexSettings) -> str:
    scheme = urlsplit(settings.store).scheme
    if scheme not in SCHEMES:
        known = ", ".join(f"{known}://" for known in SCHEMES)
        raise ConfigInvalid(f"index.store has the unknown scheme {scheme!r}: it must be one of {known}")
    return scheme
