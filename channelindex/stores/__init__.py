"""Opens the index store that a URL names. Nothing outside this folder knows which one it is.

`redis://host:port/db`, `rediss://` (TLS) and `unix:///path/redis.sock` are Redis; `memory://` is this process's own
memory, where equal URL and index name mean the same index.
"""

from collections import defaultdict
from urllib.parse import urlsplit

from channelindex.errors import ConfigInvalid
from channelindex.stores.base import IndexReader, IndexWriter, OwnerStore
from channelindex.stores.block_writer import BlockWriter
from channelindex.stores.memory import MemoryIndex, MemoryOwner, MemoryReader, memory_writer
from channelindex.stores.redis.owner import RedisOwner
from channelindex.stores.redis.reader import RedisReader
from channelindex.stores.redis.writer import RedisBlocks

__all__ = ["SCHEMES", "open_owner", "open_reader", "open_writer"]

_REDIS = ("redis", "rediss", "unix")
SCHEMES = (*_REDIS, "memory")

_memory_indexes: dict[tuple[str, str], MemoryIndex] = defaultdict(MemoryIndex)


def open_writer(url: str, index_name: str, block_bytes: int) -> IndexWriter:
    """The write half of an index; a block that has reached *block_bytes* is followed by a new one. Connects lazily.

    Raises:
        ConfigInvalid: *url* names no store that we know.
    """
    if _is_redis(url):
        return BlockWriter(RedisBlocks(url, index_name), block_bytes)
    return memory_writer(_memory_indexes[url, index_name], block_bytes)


def open_owner(url: str, index_name: str) -> OwnerStore:
    """The owner's half of an index; as `open_writer`."""
    if _is_redis(url):
        return RedisOwner(url, index_name)
    return MemoryOwner(_memory_indexes[url, index_name], index_name)


def open_reader(url: str, index_name: str) -> IndexReader:
    """The read half of an index; as `open_writer`."""
    if _is_redis(url):
        return RedisReader(url, index_name)
    return MemoryReader(_memory_indexes[url, index_name], index_name)


def _is_redis(url: str) -> bool:
    scheme = urlsplit(url).scheme
    if scheme not in SCHEMES:
        known = ", ".join(f"{known}://" for known in SCHEMES)
        raise ConfigInvalid(f"index.store has the unknown scheme {scheme!r}: it must be one of {known}")
    return scheme in _REDIS
