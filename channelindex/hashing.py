"""The hash functions that place things: keys into vbuckets, channels onto shards and slots, partitions into groups."""

import zlib
from collections.abc import Iterable

N_SLOTS = 64
"""Hash tags of an index in Redis. Part of the format: a channel's keys carry its slot, so it can never change."""


def vbucket_of(key: bytes, n_vbuckets: int) -> int:
    """The vbucket of a document key, as every Couchbase client computes it (CRC32, upper half, 15 bits)."""
    return ((zlib.crc32(key) >> 16) & 0x7FFF) % n_vbuckets


def slot_of(channel: str) -> int:
    """The hash tag, 0 to N_SLOTS - 1, under which all keys of a channel lie."""
    return zlib.crc32(channel.encode()) % N_SLOTS


def shard_of(name: str, n_shards: int) -> int:
    """The batch writer, 0 to n_shards - 1, that writes a channel or a principal's counter.

    Taken from other bits of the hash than `slot_of`, so that a writer's channels spread over all slots.
    """
    return (zlib.crc32(name.encode()) >> 8) % n_shards


def group_of(partitions: Iterable[int], n_partitions: int) -> str:
    """The stable name of a set of partitions: 16 hex digits, the same in every process and life."""
    partitions = set(partitions)
    assert all(0 <= partition < n_partitions for partition in partitions)
    bitmap = sum(1 << partition for partition in partitions)
    digest = bitmap.to_bytes((n_partitions + 7) // 8, "big")
    return f"{zlib.crc32(digest):08x}{zlib.crc32(digest[::-1] + b'g'):08x}"
