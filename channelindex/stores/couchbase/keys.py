"""The keys of an index's documents in a bucket. KEYSPACE.md describes the documents."""

import hashlib
import zlib

from channelindex.model import IndexMeta

SETTING = "index.store"
"""The setting that names the store, for messages to a person."""

N_LISTS = 1024
"""Lists of channel names. Part of the format: a channel's name says its list, so it can never change."""

MAX_NAME_BYTES = 100
"""Longest name that stands in a key as it is. A key may have 250 bytes, 246 in a collection; the parts before the name
take at most 108 of them."""


class Keys:
    """The keys of one index."""

    def __init__(self, index_name: str) -> None:
        self._prefix = f"ci:{index_name}:"
        self.meta = f"{self._prefix}meta"
        self.epoch = f"{self._prefix}epoch"
        self.stable = f"{self._prefix}stable"
        self.quarantine = f"{self._prefix}quarantine"
        self.all_principals = f"{self._prefix}principals"
        self.lists = [f"{self._prefix}l:{number}" for number in range(N_LISTS)]

    def partition(self, meta: IndexMeta, partition: int) -> str:
        """The record of a partition.

        The shape of the index is part of the key: of two that create an index of the same name with different shapes
        at the same time, one wins the meta record, and must not find the other's records.
        """
        return f"{self._prefix}p:{meta.n_partitions}x{meta.partition_width}:{partition}"

    def archive(self, partition: int) -> str:
        """The starts of epochs that have left the record of a partition."""
        assert partition >= 0
        return f"{self._prefix}a:{partition}"

    def timeline(self, partition: int) -> str:
        """The moments of a partition."""
        assert partition >= 0
        return f"{self._prefix}t:{partition}"

    def list_of(self, channel: str) -> str:
        """The list that has the name of *channel*."""
        return self.lists[zlib.crc32(channel.encode()) % N_LISTS]

    def directory(self, channel: str) -> str:
        """A channel's active block in each group."""
        return f"{self._prefix}c:{_short(channel)}"

    def block(self, channel: str, group: str, number: int) -> str:
        """One block of a channel in a group."""
        assert number >= 0
        return f"{self._prefix}b:{group}:{number}:{_short(channel)}"

    def principal(self, key: str) -> str:
        """The key of the counter of a user or role document; "" for the sum over all."""
        return f"{self._prefix}u:{_short(key)}" if key else self.all_principals


def _short(name: str) -> str:
    """*name* after a "=", or if it is long its SHA-256 after a "#", so that no name can look like another's digest."""
    raw = name.encode()
    if len(raw) <= MAX_NAME_BYTES:
        return f"={name}"
    return f"#{hashlib.sha256(raw).hexdigest()}"
