"""The compactor's half in Redis."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from channelindex import epochs
from channelindex.blocks import slot_of
from channelindex.epochs import EpochStart
from channelindex.errors import OutcomeUnknown, StaleEpoch, StoreUnavailable, Transient
from channelindex.redis.link import MAX_AGE_S
from channelindex.stores.base import IndexReader
from channelindex.stores.compacting import STRAY_S, ChannelSizes, Switch
from channelindex.stores.meta import lost_record
from channelindex.stores.records import pack_history, pack_seqnos
from channelindex.stores.redis.directories import encode_directory, read_sizes
from channelindex.stores.redis.keys import Keys
from channelindex.stores.redis.partition_records import RECORD_FIELDS, decode_record, read_meta
from channelindex.stores.redis.reader import RedisReader
from channelindex.stores.redis.servers import ask_servers, digest_of
from channelindex.stores.redis.store_link import open_link

_RAISE_ATTEMPTS = 20
"""Lost comparisons before `raise_compacted` gives up: each means that another compactor was faster by a round trip."""

_BLOCKS_AT_ONCE = 16
"""Output blocks in one request: 1 MB, so that Redis is never long with one of ours."""

_SWITCHED_AT_ONCE = 64
"""Blocks that one script makes durable, and old ones that it gives their time to live: some 200 µs of Redis."""

_TRIMMED_AT_ONCE = 500
"""Blocks in one call of a script: 1.5 ms of Redis."""

_EXPIRY_STEP_MS = 100
"""Time between the ends of so many blocks: Redis deletes in one go what is over when it looks, ten times a second."""

_STRAYS_LEFT = 2
"""Answer of switch.lua."""

_TRIMMED_BYTES = 1 << 20
"""Bytes of these: about as long, where Redis copies all of them."""

_encode = msgspec.msgpack.Encoder().encode


class RedisCompaction:
    """`CompactionStore` in Redis.

    A server that takes another one's place may lack what `raise_compacted` noted there. A cluster's next epoch assumes
    it (`epochs.assume_compacted`), that of a single Redis does not. So a switch happens only in the servers of the last
    `raise_compacted`. The link does not reconnect unasked: who was asked who it is gets the switch, or nobody.
    """

    ends_with_header = False

    def __init__(self, url: str, index_name: str) -> None:
        self._url = url
        self._index_name = index_name
        self._keys = Keys(index_name)
        self._link = open_link(url, OutcomeUnknown, reconnects=False)
        self._asked_where_at = time.monotonic()
        self._fenced_servers = 0
        self._servers = 0
        self._identified_session = -1

    def reader(self) -> IndexReader:
        """Read by the same connections: what is judged and what is changed are in one server, while another lives."""
        return RedisReader(self._url, self._index_name, self._link)

    def sizes(self, channels: Sequence[str]) -> Sequence[ChannelSizes | None]:
        """See `CompactionStore.sizes`. By connections of at most MAX_AGE_S: the address of the store may have moved."""
        if time.monotonic() - self._asked_where_at > MAX_AGE_S:
            self._link.close()
            self._asked_where_at = time.monotonic()
        return read_sizes(self._link, self._keys, channels)

    def raise_compacted(self, through: Mapping[int, Sequence[int]], epoch_by_partition: Mapping[int, int]) -> None:
        """See `CompactionStore.raise_compacted`. By a new connection: the address of the store may have moved."""
        self._link.close()
        self._fenced_servers = self._present_servers()
        for partition, seqnos in through.items():
            self._raise_one(partition, seqnos, epoch_by_partition[partition])

    def servers(self) -> int:
        """See `CompactionStore.servers`."""
        return self._fenced_servers

    def _are_others(self) -> bool:
        """True if the servers are not those of the last `raise_compacted` any more."""
        return bool(self._fenced_servers) and self._present_servers() != self._fenced_servers

    def _present_servers(self) -> int:
        if self._link.session != self._identified_session:
            self._servers = digest_of(ask_servers(self._link))
            self._identified_session = self._link.session
        return self._servers

    def _raise_one(self, partition: int, through: Sequence[int], epoch: int) -> None:
        key = self._keys.partition(partition)
        vbuckets = read_meta(self._link, self._keys, self._index_name).vbuckets_of(partition)
        for _ in range(_RAISE_ATTEMPTS):
            record = decode_record(self._link.execute("HMGET", key, *RECORD_FIELDS), vbuckets, key)
            raised = epochs.compact(record, epoch, through, partition)
            if raised == record:
                return
            before, after = pack_seqnos(record.compacted_through), pack_seqnos(raised.compacted_through)
            found = self._link.run("compacted", (key,), epoch, before, after)
            if found == 1:
                return
            if found == b"":
                raise lost_record(key)
            if found != 0:
                raise StaleEpoch(partition, epoch, int(found))
        raise Transient(f"{key} changed {_RAISE_ATTEMPTS} times while it was to be compacted")

    def write_blocks(self, channel: str, group: str, first: int, blocks: Sequence[bytes]) -> None:
        """See `CompactionStore.write_blocks`."""
        assert first >= 0, "blocks are numbered from 0 on"
        for start in range(0, len(blocks), _BLOCKS_AT_ONCE):
            self._link.pipeline(
                [
                    ("SET", self._keys.block(channel, group, first + start + position), block, "NX", "EX", STRAY_S)
                    for position, block in enumerate(blocks[start : start + _BLOCKS_AT_ONCE])
                ]
            )

    def switch(self, switch: Switch) -> bool:
        """See `CompactionStore.switch`. What is too much for one script goes before it, or after it.

        Who is killed between these leaves a note, by which another compactor does the rest (`sweep`).
        """
        if self._are_others():
            return False
        output, kept = switch.output, 0
        sizes = output.sizes if output else ()
        while output and len(sizes) - kept > _SWITCHED_AT_ONCE:
            part = sizes[kept : kept + _SWITCHED_AT_ONCE]
            if not self._run_on("keep", switch.channel, (switch.generation, switch.at, output.group, kept, part)):
                return False
            kept += len(part)
        if kept and self._are_others():  # a cluster's masters may have been replaced meanwhile
            return False
        groups: list[str | int] = []
        for group, known, removed, active_bytes in switch.changes:
            size = -1 if active_bytes is None else active_bytes
            groups += (group, encode_directory(known), known.number, known.before, known.first, int(removed), size)
        named = (output.group, encode_directory(output.directory), kept, sizes[kept:]) if output else ("", "", 0, ())
        numbers = (switch.generation, switch.live, switch.at, switch.grace_s * 1000, _SWITCHED_AT_ONCE)
        clock = output.clock if output else b""
        outcome = self._run_on("switch", switch.channel, (*numbers, *named, groups), clock, switch.floor)
        assert kept + len(named[3]) == len(sizes), "each output block is durable now, or was not to be"
        assert outcome in (0, 1, _STRAYS_LEFT)
        if outcome == _STRAYS_LEFT:
            self.sweep(switch.channel, switch.grace_s, 0)
        return bool(outcome)

    def sweep(self, channel: str, grace_s: int, since: int) -> None:
        """See `CompactionStore.sweep`."""
        assert grace_s >= 0
        ms = grace_s * 1000
        while self._run_on("sweep", channel, (ms, _SWITCHED_AT_ONCE, since)):
            ms += _EXPIRY_STEP_MS

    def _run_on(self, script: str, channel: str, values: tuple[Any, ...], *arguments: bytes) -> int:
        """The reply of a script that changes a channel."""
        slot = self._keys.slot(slot_of(channel))
        keys = () if self._link.spans_slots else (slot,)
        return int(self._link.run(script, keys, slot, channel, _encode(values), *arguments))

    def prune(self, partition: int, before: Sequence[EpochStart], after: Sequence[EpochStart]) -> bool:
        """See `CompactionStore.prune`."""
        if self._are_others():
            return False
        assert len(after) <= len(before), "an archive becomes shorter"
        archives = pack_history(tuple(before)), pack_history(tuple(after))
        return bool(self._link.run("prune", (self._keys.archive(partition),), *archives))

    def give_back(self, sizes: Mapping[str, ChannelSizes]) -> None:
        """See `CompactionStore.give_back`. About 1 µs for each block, more where there is something to give back.

        Where Redis cannot now, because it is full or a slot moves, nothing comes of it until the next look.
        """
        by_slot: dict[int, list[tuple[str, int]]] = {}
        for channel, each in sizes.items():
            blocks = by_slot.setdefault(0 if self._link.spans_slots else slot_of(channel), [])
            blocks += [
                (self._keys.block(channel, group, size.directory.number), size.active_bytes)
                for group, size in each.groups.items()
            ]
        with suppress(StoreUnavailable):
            for blocks in by_slot.values():
                for keys in _portions(blocks):
                    self._link.run("trim", keys)

    def discard(self, channel: str, group: str, n_blocks: int) -> None:
        """See `CompactionStore.discard`."""
        assert n_blocks >= 0
        for start in range(0, n_blocks, _BLOCKS_AT_ONCE):
            numbers = range(start, min(n_blocks, start + _BLOCKS_AT_ONCE))
            self._link.pipeline([("UNLINK", self._keys.block(channel, group, number)) for number in numbers])

    def close(self) -> None:
        """See `CompactionStore.close`."""
        self._link.close()


def _portions(blocks: Iterable[tuple[str, int]]) -> Iterator[list[str]]:
    """The keys of *blocks* (key, bytes), as many at once as one call of trim.lua is to have."""
    keys: list[str] = []
    n_bytes = 0
    for key, size in blocks:
        if keys and (len(keys) == _TRIMMED_AT_ONCE or n_bytes + size > _TRIMMED_BYTES):
            yield keys
            keys, n_bytes = [], 0
        keys.append(key)
        n_bytes += size
    if keys:
        yield keys
