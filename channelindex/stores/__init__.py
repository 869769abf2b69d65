"""Opens the index store that the settings name. Nothing outside this folder knows which one it is.

Every URL of `channelindex.redis_url` is Redis, one server or a cluster; `memory://` is this process's own memory, where
equal URL and index name mean the same index, or for a reader that of the node whose run directory it names.
`couchbase://` and `couchbases://` (TLS) are a bucket; its SDK is imported only where one is used, because it takes
longer to import than all of ours.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

from channelindex.errors import ConfigInvalid, ExtraMissing, IndexMissing
from channelindex.redis_url import SCHEMES as REDIS_SCHEMES
from channelindex.settings import MEMORY_URL, IndexSettings
from channelindex.stores.base import IndexReader, IndexWriter, OwnerStore
from channelindex.stores.block_writer import BlockWriter
from channelindex.stores.compacting import CompactionStore
from channelindex.stores.memory import MemoryIndex, MemoryOwner, MemoryReader, memory_writer
from channelindex.stores.memory_client import MemoryClient
from channelindex.stores.memory_compaction import MemoryCompaction
from channelindex.stores.memory_limits import MemoryLimits
from channelindex.stores.memory_wire import socket_path
from channelindex.stores.redis.compaction import RedisCompaction
from channelindex.stores.redis.owner import RedisOwner
from channelindex.stores.redis.reader import RedisReader
from channelindex.stores.redis.removal import remove_index as remove_redis_index
from channelindex.stores.redis.servers import describe_servers
from channelindex.stores.redis.writer import RedisBlocks

__all__ = [
    "SCHEMES",
    "describe_store",
    "is_compacted",
    "memory_index",
    "open_compaction",
    "open_compaction_reader",
    "open_owner",
    "open_reader",
    "open_writer",
    "remove_index",
]

_COUCHBASE = ("couchbase", "couchbases")
SCHEMES = (*REDIS_SCHEMES, *_COUCHBASE, "memory")

_memory_indexes: dict[tuple[str, str], MemoryIndex] = {}


def open_writer(settings: IndexSettings) -> IndexWriter:
    """The write half of an index; a block that has reached `block_bytes` is followed by a new one. Connects lazily.

    Raises:
        ConfigInvalid: `store` names no store that we know.
        ExtraMissing: it names a bucket, and the SDK is not installed.
    """
    if _scheme(settings) in REDIS_SCHEMES:
        return BlockWriter(RedisBlocks(settings.store, settings.name), settings.block_bytes)
    if _scheme(settings) in _COUCHBASE:
        with _couchbase_sdk():
            from channelindex.stores.couchbase.writer import CouchbaseBlocks  # noqa: PLC0415 see above
        return BlockWriter(CouchbaseBlocks(settings), settings.block_bytes)
    return memory_writer(memory_index(settings), settings.block_bytes)


def open_owner(settings: IndexSettings) -> OwnerStore:
    """The owner's half of an index; as `open_writer`."""
    if _scheme(settings) in REDIS_SCHEMES:
        return RedisOwner(settings.store, settings.name, allow_eviction=settings.allow_eviction)
    if _scheme(settings) in _COUCHBASE:
        with _couchbase_sdk():
            from channelindex.stores.couchbase.owner import CouchbaseOwner  # noqa: PLC0415 see above
        return CouchbaseOwner(settings)
    return MemoryOwner(memory_index(settings), settings.name)


def open_reader(settings: IndexSettings, run_dir: str | None = None) -> IndexReader:
    """The read half of an index; as `open_writer`. With *run_dir*, `memory://` is that of the node that runs there."""
    if _scheme(settings) in REDIS_SCHEMES:
        return RedisReader(settings.store, settings.name)
    if _scheme(settings) in _COUCHBASE:
        with _couchbase_sdk():
            from channelindex.stores.couchbase.reader import CouchbaseReader  # noqa: PLC0415 see above
        return CouchbaseReader(settings)
    if run_dir is not None:
        return MemoryClient(socket_path(run_dir, settings.name))
    return MemoryReader(memory_index(settings), settings.name)


def open_compaction(settings: IndexSettings) -> CompactionStore:
    """The compactor's half of an index; as `open_writer`.

    Raises:
        ConfigInvalid: the store is not compacted: an index in memory that forgets by itself.
    """
    if _scheme(settings) in REDIS_SCHEMES:
        return RedisCompaction(settings.store, settings.name)
    if _scheme(settings) in _COUCHBASE:
        with _couchbase_sdk():
            from channelindex.stores.couchbase.compaction import CouchbaseCompaction  # noqa: PLC0415 see above
        return CouchbaseCompaction(settings)
    return MemoryCompaction(memory_index(settings))


def open_compaction_reader(settings: IndexSettings, store: CompactionStore) -> IndexReader:
    """The read half by which a compactor judges what it changes in *store*."""
    return store.reader() if isinstance(store, RedisCompaction) else open_reader(settings)


def is_compacted(settings: IndexSettings) -> bool:
    """True if nodes compact an index in this store: `open_compaction` opens it from any process."""
    return settings.store.partition("://")[0] in (*REDIS_SCHEMES, *_COUCHBASE)


def describe_store(settings: IndexSettings) -> list[str]:
    """A line for each server of the store that reports facts, once it was found to be usable.

    Raises:
        ConfigInvalid, AuthenticationFailed, StoreUnavailable: it is not.
    """
    if _scheme(settings) in REDIS_SCHEMES:
        return describe_servers(settings.store, allow_eviction=settings.allow_eviction)
    with closing(open_reader(settings)) as reader, suppress(IndexMissing):
        reader.meta()
    return []


def remove_index(settings: IndexSettings) -> bool:
    """Remove an index that nobody writes any more; False where the store offers no way to."""
    if settings.store == MEMORY_URL:
        return _memory_indexes.pop((settings.store, settings.name), None) is not None
    if _scheme(settings) in REDIS_SCHEMES:
        remove_redis_index(settings.store, settings.name)
        return True
    return False


def memory_index(settings: IndexSettings) -> MemoryIndex:
    """The index that `memory://` is in this process; the first to ask for it decides how much it holds."""
    key = settings.store, settings.name
    if key not in _memory_indexes:
        limits = MemoryLimits(settings.memory_max_entries, settings.memory_min_entries, settings.memory_max_age_s)
        _memory_indexes[key] = MemoryIndex(limits)
    return _memory_indexes[key]


@contextmanager
def _couchbase_sdk() -> Iterator[None]:
    """Turn what an import of the SDK raises where it is not installed into the error that says how to get it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "couchbase":
            raise
        raise ExtraMissing("couchbase", "couchbase") from error


def _scheme(settings: IndexSettings) -> str:
    scheme = settings.store.partition("://")[0]
    if scheme not in SCHEMES:
        known = ", ".join(f"{known}://" for known in SCHEMES)
        raise ConfigInvalid(f"index.store has the unknown scheme {scheme!r}: it must be one of {known}")
    return scheme
