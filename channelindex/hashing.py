"""The hash functions that place things: keys into vbuckets, partitions into groups."""

import zlib
from collections.abc import Iterable


def vbucket_of(key: bytes, n_vbuckets: int) -> int:
    """The vbucket of a document key, as every Couchbase client computes it (CRC32, upper half, 15 bits)."""
    return ((zlib.crc32(key) >> 16) & 0x7FFF) % n_vbuckets


def group_of(partitions: Iterable[int], n_partitions: int) -> str:
    """The stable name of a set of partitions: 16 hex digits, the same in every process and life."""
    partitions = set(partitions)
    assert all(0 <= partition < n_partitions for partition in partitions)
    bitmap = sum(1 << partition for partition in partitions)
    digest = bitmap.to_bytes((n_partitions + 7) // 8, "big")
    return f"{zlib.crc32(digest):08x}{zlib.crc32(digest[::-1] + b'g'):08x}"
