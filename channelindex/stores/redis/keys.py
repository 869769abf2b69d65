"""Names an index's keys in Redis. KEYSPACE.md describes their values; the scripts build those of channels alike."""

from channelindex.blocks import N_SLOTS, slot_of
from channelindex.stores.base import BlockRef

SETTING = "index.store"
"""The setting that names the store, for messages to a person."""


class Keys:
    """The keys of one index.

    Keys of the index as a whole share the hash tag {i}, those of a channel the tag of its slot, so that each script
    finds all that it touches on one node of a Redis Cluster.
    """

    def __init__(self, index_name: str) -> None:
        self.prefix = f"ci:{index_name}:"
        self.meta = f"{self.prefix}{{i}}:meta"
        self.epoch = f"{self.prefix}{{i}}:epoch"
        self.stable = f"{self.prefix}{{i}}:stable"
        self.view = f"{self.prefix}{{i}}:view"
        self.principals = f"{self.prefix}{{i}}:principals"
        self.quarantine = f"{self.prefix}{{i}}:quarantine"
        self.quarantined = f"{self.prefix}{{i}}:quarantined"

    def partition(self, partition: int) -> str:
        """The record of a partition."""
        return f"{self.prefix}{{i}}:p:{partition}"

    def archive(self, partition: int) -> str:
        """The epoch starts that no longer are in a partition's record."""
        return f"{self.prefix}{{i}}:h:{partition}"

    def timeline(self, partition: int) -> str:
        """The moments of a partition."""
        return f"{self.prefix}{{i}}:t:{partition}"

    def channel(self, channel: str) -> str:
        """A channel's directory of groups."""
        return f"{self._slot(channel)}c:{channel}"

    def block(self, channel: str, group: str, number: int) -> str:
        """One block of a channel in a group."""
        assert number >= 0
        return f"{self._slot(channel)}b:{group}:{number}:{channel}"

    def channel_pattern(self) -> str:
        """A SCAN pattern that all `channel` keys of the index match. Others may too: ask `channel_of`."""
        return f"{self._escaped_prefix()}{{*}}:c:*"

    def blocks_pattern(self) -> str:
        """A SCAN pattern that all `block` keys of the index match. Others may too: ask `block_of`."""
        return f"{self._escaped_prefix()}{{*}}:b:*"

    def all_pattern(self) -> str:
        """A SCAN pattern that the keys of the index match, and no others."""
        return f"{self._escaped_prefix()}*"

    def _escaped_prefix(self) -> str:
        return "".join(f"\\{character}" if character in "*?[]^-\\" else character for character in self.prefix)

    def channel_of(self, key: bytes) -> str | None:
        """The channel whose `channel` key this is, None if it is another key."""
        channel = key.decode(errors="replace").partition("}:c:")[2]
        return channel if self.channel(channel).encode() == key else None

    def block_of(self, key: bytes) -> BlockRef | None:
        """The block whose `block` key this is, None if it is another key."""
        group, _, rest = key.decode(errors="replace").partition("}:b:")[2].partition(":")
        number, _, channel = rest.partition(":")
        if not number.isdecimal() or self.block(channel, group, int(number)).encode() != key:
            return None
        return BlockRef(channel, group, int(number))

    def names(self, slot: int) -> str:
        """The names of the channels of *slot* that were ever written."""
        assert 0 <= slot < N_SLOTS
        return f"{self.slot(slot)}n"

    def slot(self, slot: int) -> str:
        """The prefix of all keys of the channels of *slot*. No key is named so: it routes a script."""
        return f"{self.prefix}{{{slot}}}:"

    def marks(self, slot: int) -> str:
        """The marks of owners in *slot*."""
        assert 0 <= slot < N_SLOTS
        return f"{self.slot(slot)}m"

    def _slot(self, channel: str) -> str:
        return self.slot(slot_of(channel))
