"""The owner's half in Redis: partition records are hashes, each changed by a script that compares before it writes."""

import struct
import time
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from channelindex import epochs
from channelindex.epochs import EpochStart, PartitionRecord
from channelindex.errors import IndexMissing, OutcomeUnknown, OwnershipLost, StaleEpoch, Transient
from channelindex.model import Checkpoint, IndexMeta
from channelindex.redis.link import ScriptCall, packed
from channelindex.stores import records
from channelindex.stores.base import OwnerStore, Quarantined, RepairedChannels, Restored
from channelindex.stores.meta import check_meta, decode_meta, encode_meta, lost_meta, lost_record, missing_index
from channelindex.stores.redis.channel_repair import repair_channels
from channelindex.stores.redis.keys import Keys
from channelindex.stores.redis.losses import fall_back_all
from channelindex.stores.redis.marks import SWEEP_INTERVAL, MarkSetter, read_marks, sweep_marks
from channelindex.stores.redis.partition_records import RECORD_FIELDS, decode_record, read_meta
from channelindex.stores.redis.restoring import has_records, restore
from channelindex.stores.redis.servers import ask_histories, ask_servers, digest_of, refuse_eviction
from channelindex.stores.redis.store_link import open_link
from channelindex.stores.redis.timelines import TimelineWriter, read_epochs

ASK_INTERVAL_S = 1.0
"""Time for which the identity of the servers is assumed unchanged."""

LOOK_PAUSE = 20
"""Times as long as it took to look who has replaced our server, until we look again: a Sentinel may be silent."""

HISTORY_INTERVAL_S = 0.5
"""The same of the history of a cluster's masters before a move of the stable clock: to ask three at each cost more than
the move. What is moved over until then is taken back with all that no server vouches for, see `begin_all`."""

_BEGIN_ATTEMPTS = 20
"""Lost comparisons before `begin` gives up: each means that another owner changed the record within a round trip."""


class _FoundRecord(NamedTuple):
    """A record as it is, its version, and the digest of the servers in which its checkpoints are known to be."""

    version: bytes
    servers: int
    record: PartitionRecord


class _Successor(NamedTuple):
    """A record to be, the version of the one that it was made from, and what goes to the archive with it."""

    version: bytes
    goes_back: bool
    record: PartitionRecord
    old: tuple[EpochStart, ...]


class _Known(NamedTuple):
    """The shape from the meta record: vbuckets per partition; each partition's key and its place in the stable view.

    Packed are the keys and the places for an advance.
    """

    meta: IndexMeta
    width: int
    partition_keys: Sequence[str]
    packed_common: Sequence[bytes]
    packed_keys: Sequence[bytes]
    view_offsets: Sequence[bytes]


_CHANGE = struct.Struct(">H5Q")
_ADVANCED = b"+1 1\r\n"
"""The reply of advance.lua where nothing was refused."""
_NO_VIEW = -1
"""The reply of begin.lua where the stable view is missing."""


class RedisOwner(OwnerStore):
    """`OwnerStore` in Redis.

    Redis may forget its newest writes when it restarts or fails over: blocks, of which our caller knows that they were
    written, among them. So the stable clock moves only as long as the Redis goes on in which our first epoch began. One
    Redis forgets the record with them; of a cluster, an epoch begins where all servers have what the record says.
    """

    def __init__(self, url: str, index_name: str, *, allow_eviction: bool = False) -> None:
        self._index_name = index_name
        self._keys = Keys(index_name)
        self._link = open_link(url, OutcomeUnknown, reconnects=False)
        self._timelines = TimelineWriter(self._link, self._keys)
        self._marks = MarkSetter(self._link, self._keys)
        self._known: _Known | None = None
        self._has_begun = False
        self._allow_eviction = allow_eviction
        self._first_servers = 0
        """Those in which our first epoch began; 0 before."""
        self._servers = 0
        self._histories: Sequence[str] = ()
        """The replication ids of the servers, as they were found last."""
        self._identified_session = -1
        self._ask_again_at = 0.0
        self._look_at = 0.0
        self._ask_histories_at = 0.0

    def servers(self) -> int:
        """See `OwnerStore.servers`."""
        return self._first_servers

    def create_or_check(self, expected: IndexMeta) -> IndexMeta:
        """See `OwnerStore.create_or_check`."""
        self._identify_server()
        checkpoints = records.pack_checkpoints(epochs.new_record(0, expected.partition_width).checkpoints)
        partitions = [self._keys.partition(partition) for partition in range(expected.n_partitions)]
        arguments = (encode_meta(expected), checkpoints, expected.index_uuid)
        found = self._link.run("create", (self._keys.meta, self._keys.view, *partitions), *arguments)
        if not found:
            raise lost_meta(self._keys.meta)
        meta = decode_meta(found, self._keys.meta, self._index_name)
        check_meta(meta, expected, self._index_name)
        self._know(meta)
        return meta

    def restore(self, expected: IndexMeta, partitions: Collection[int] = (), *, from_nothing: bool = False) -> Restored:
        """See `OwnerStore.restore`."""
        self._identify_server()
        if not from_nothing and not has_records(self._link, self._keys, expected):
            raise missing_index(self._index_name)
        restored = restore(self._link, self._keys, self._index_name, expected, partitions, self._servers)
        self._know(restored.meta)
        return restored

    def repair_channels(self, channels: Collection[str] | None = None, floor: bytes = b"") -> RepairedChannels:
        """See `OwnerStore.repair_channels`."""
        return repair_channels(self._link, self._keys, channels, floor)

    def next_epoch(self) -> int:
        """See `OwnerStore.next_epoch`. A number whose reply was lost is never used."""
        self._identify_server()
        return self._next_epoch_after(0)

    def _next_epoch_after(self, known: int) -> int:
        """The next epoch, above *known* too."""
        return int(self._link.run("epoch", (self._keys.epoch,), known))

    def begin_all(
        self,
        rollbacks: Mapping[int, Mapping[int, Checkpoint]],
        epoch: int,
        owner: str,
        only_if: int | None = None,
    ) -> list[PartitionRecord]:
        """See `OwnerStore.begin_all`. Three round trips, as long as nobody else changes one of the records.

        Raises:
            OwnershipLost: Redis restarted or failed over since this instance began another epoch.
            IndexCorrupt: it did since the record was begun, and nothing that is old enough is known of a partition.
        """
        self._begin_in_present_servers()
        begun: dict[int, PartitionRecord] = {}
        for _ in range(_BEGIN_ATTEMPTS):
            waiting = [partition for partition in rollbacks if partition not in begun]
            if not waiting:
                return [begun[partition] for partition in rollbacks]
            successors: dict[int, _Successor] = {}
            found = dict(zip(waiting, self._records(waiting), strict=True))
            fallbacks = self._fallbacks(epoch, found, rollbacks)
            for partition, stored in found.items():
                rollback = rollbacks[partition]
                if partition not in fallbacks and epochs.has_begun(stored.record, epoch, owner, rollback):
                    begun[partition] = stored.record
                    continue
                rollback = epochs.lower_of(rollback, fallbacks.get(partition, {}))
                new = epochs.begin(stored.record, epoch, owner, rollback, only_if, partition)
                if partition in fallbacks:
                    new = epochs.assume_compacted(new)
                goes_back = epochs.goes_back(stored.record, new)
                assert new.epoch == epoch, "it has begun"
                successors[partition] = _Successor(stored.version, goes_back, *epochs.archive_old(new))
            changed = self._replace(successors)
            begun |= {partition: new.record for partition, new in successors.items() if partition not in changed}
        raise Transient(
            f"partitions {waiting}: their records changed {_BEGIN_ATTEMPTS} times while epoch {epoch} began"
        )

    def advance(self, epoch: int, checkpoints: Mapping[int, Mapping[int, Checkpoint]]) -> None:
        """See `OwnerStore.advance`. All partitions go in one script.

        Raises:
            OwnershipLost: Redis restarted or failed over since this instance began; a new epoch has to.
        """
        # of those that took the blocks, we may never have talked to any since we began
        is_due = not self._link.spans_slots and time.monotonic() >= self._ask_histories_at
        self._require_first_servers(epoch, asks=is_due and any(checkpoints.values()))
        known = self._known or self._read_meta()
        partitions = [*checkpoints]
        keys = [known.packed_keys[partition] for partition in partitions]
        offsets = b"".join([known.view_offsets[partition] for partition in partitions])
        arguments = map(packed, (b"%d" % epoch, offsets, *_pack_changes(checkpoints, known.width)))
        parts = (*known.packed_common, *keys, *arguments)
        reply = self._link.run_packed("advance", self._keys.view, len(known.packed_common) + len(keys), parts)
        if reply != _ADVANCED:
            self._refuse(epoch, partitions, known, reply)

    def _refuse(self, epoch: int, partitions: Sequence[int], known: _Known, reply: bytes) -> None:
        """Raise what *reply* of advance.lua to changes of *partitions* means: not all of them were advanced."""
        has_meta, has_view, *refused = reply[1:].decode().split()
        found = [(partitions[int(place)], current) for place, _, current in (each.partition(":") for each in refused)]
        if has_meta == "0":
            if has_view == "1" or any(current for _, current in found):
                raise lost_meta(self._keys.meta)
            raise IndexMissing(f"{self._keys.meta} is gone, and with it the index {self._index_name!r}")
        if has_view == "0":
            raise lost_record(self._keys.view)
        assert found, "something was refused"
        for partition, current in found:
            if not current:
                raise lost_record(known.partition_keys[partition])
            raise StaleEpoch(partition, epoch, int(current))

    def note_moments(self, epoch: int, partitions: Collection[int], now_s: float) -> None:
        """See `OwnerStore.note_moments`. Two round trips; in a cluster four, for a mark in each slot.

        Raises:
            OwnershipLost: see `advance`.
        """
        due = self._timelines.due(epoch, partitions)
        if not due:
            return
        meta = (self._known or self._read_meta()).meta
        mark = 0 if self._link.spans_slots else self._set_mark(epoch)
        self._timelines.note(meta, epoch, due, mark, now_s)
        if mark % SWEEP_INTERVAL == 1:
            self._sweep_marks(meta)

    def _set_mark(self, epoch: int) -> int:
        """Set a mark in each slot of the servers in which our first epoch began; what was stable before is in them.

        To ask who they are afterwards is enough: none that was replaced ever comes back as it was.
        """
        mark = self._marks.set(epoch)
        assert mark > 0, "0 stands for none"
        self._require_first_servers(epoch, asks=True)
        self._marks.confirm(epoch, mark)
        return mark

    def _sweep_marks(self, meta: IndexMeta) -> None:
        partitions = range(meta.n_partitions)
        present = min(stored.record.epoch for stored in self._records(partitions))
        sweep_marks(self._link, self._keys, read_epochs(self._link, self._keys, partitions), present)

    def quarantine(self, documents: Sequence[Quarantined]) -> None:
        """See `OwnerStore.quarantine`. Repeating it counts them twice."""
        if not documents:
            return
        packed = [records.pack_quarantined(document) for document in documents]
        self._link.pipeline(
            [
                ("LPUSH", self._keys.quarantine, *packed),
                ("LTRIM", self._keys.quarantine, 0, records.QUARANTINE_DOCUMENTS - 1),
                ("INCRBY", self._keys.quarantined, len(packed)),
            ]
        )

    def forget_quarantined(self, documents: Sequence[Quarantined]) -> None:
        """See `OwnerStore.forget_quarantined`."""
        key = self._keys.quarantine
        self._link.pipeline([("LREM", key, 0, records.pack_quarantined(document)) for document in documents])

    def close(self) -> None:
        """See `OwnerStore.close`."""
        self._link.close()

    def _identify_server(self) -> None:
        """Find out whom we are connected to, where that may have changed, and from time to time anyway.

        The link does not reconnect unasked, so what follows runs on the connection that was asked here, or fails. But
        of a cluster's masters, we talk to one alone; and a master that was made a replica and a master again has lost
        what only it had, and kept our connection.

        Raises:
            ConfigInvalid: it may evict keys, and that is not allowed.
        """
        now = time.monotonic()
        if self._link.session == self._identified_session and now < self._ask_again_at:
            return
        self._follow_address()
        servers = ask_servers(self._link)
        if not self._allow_eviction:
            refuse_eviction(servers)
        self._servers = digest_of(servers)
        self._histories = [server.replication_id for server in servers]
        self._identified_session = self._link.session
        self._ask_again_at = now + ASK_INTERVAL_S

    def _follow_address(self) -> None:
        """Let go of a server that another one has replaced: if it only hung, it still serves the connections it had."""
        began = time.monotonic()
        if began < self._look_at:
            return
        if self._link.leads_elsewhere():
            self._link.close()
        looked_at = time.monotonic()
        self._look_at = looked_at + max(ASK_INTERVAL_S, LOOK_PAUSE * (looked_at - began))

    def _begin_in_present_servers(self) -> None:
        """Ask who the servers are. If nothing was begun by this instance yet, they are those that it begins in."""
        self._ask_again_at = 0.0
        self._identify_server()
        if not self._has_begun:
            self._first_servers = self._servers
        elif self._servers != self._first_servers:
            raise OwnershipLost("the Redis of index.store restarted or failed over since an epoch of ours began")

    def _require_first_servers(self, epoch: int, *, asks: bool) -> None:
        """Go on only if the servers are those in which our first epoch began; where *asks*, ask them even now.

        Their histories are enough: none goes on with one that another had, or it had before.
        """
        self._identify_server()
        if asks:
            asked_at = time.monotonic()
            if ask_histories(self._link) != self._histories:
                self._ask_again_at = 0.0
                self._identify_server()
            self._ask_histories_at = asked_at + HISTORY_INTERVAL_S
        self._first_servers = self._first_servers or self._servers
        if self._servers != self._first_servers:
            raise OwnershipLost(
                f"epoch {epoch}: the Redis of index.store restarted or failed over, and may have lost what was written"
            )

    def _fallbacks(
        self, epoch: int, found: Mapping[int, _FoundRecord], rollbacks: Mapping[int, Mapping[int, Checkpoint]]
    ) -> Mapping[int, Mapping[int, Checkpoint]]:
        """The checkpoints up to which all servers of a cluster have everything, of partitions begun in other ones.

        Raises:
            Transient: the counter of epochs went back too, and *epoch* was handed out before; the next one was not.
        """
        assert found.keys() <= rollbacks.keys()
        if self._link.spans_slots:
            return {}
        moved = {
            partition: stored.record
            for partition, stored in found.items()
            if stored.servers != self._servers and epochs.keeps_any(stored.record, rollbacks[partition])
        }
        if not moved:
            return {}
        marks_by_slot = read_marks(self._link, self._keys)
        newest = max(max(marks, default=0) for marks in marks_by_slot)
        if newest >= epoch:
            after = self._next_epoch_after(newest)
            raise Transient(f"epoch {epoch} was handed out again by an index.store that went back; next is {after + 1}")
        return fall_back_all(self._link, self._keys, (self._known or self._read_meta()).meta, moved, marks_by_slot)

    def _read_meta(self) -> _Known:
        return self._know(read_meta(self._link, self._keys, self._index_name))

    def _know(self, meta: IndexMeta) -> _Known:
        """Keep what every advance needs of *meta*, which never changes."""
        keys = [self._keys.partition(partition) for partition in range(meta.n_partitions)]
        offsets = [
            struct.pack(">I", records.view_bytes(partition, meta.partition_width))
            for partition in range(meta.n_partitions)
        ]
        assert offsets == sorted(offsets), "the parts of the view follow each other"
        common = [packed(key.encode()) for key in (self._keys.stable, self._keys.meta, self._keys.view)]
        packed_keys = [packed(key.encode()) for key in keys]
        self._known = _Known(meta, meta.partition_width, keys, common, packed_keys, offsets)
        return self._known

    def _records(self, partitions: Sequence[int]) -> list[_FoundRecord]:
        known = self._known or self._read_meta()
        keys = [known.partition_keys[partition] for partition in partitions]
        replies = self._link.pipeline([("HMGET", key, "v", "servers", *RECORD_FIELDS) for key in keys])
        return [
            _FoundRecord(version, int(servers or 0), decode_record(fields, known.meta.vbuckets_of(partition), key))
            for partition, key, (version, servers, *fields) in zip(partitions, keys, replies, strict=True)
        ]

    def _replace(self, successors: Mapping[int, _Successor]) -> set[int]:
        """Put each into the place of the record it was made from; the partitions whose records have changed since."""
        assert all(
            each.record.first_vb == partition * len(each.record.checkpoints) for partition, each in successors.items()
        )
        calls: list[ScriptCall] = []
        for partition, (version, goes_back, record, old) in successors.items():
            archive = self._keys.archive(partition)
            keys = (self._keys.partition(partition), archive, self._keys.view, self._keys.stable)
            checkpoints = records.pack_checkpoints(record.checkpoints)
            history = records.pack_history(record.history)
            through, restarting = records.pack_seqnos(record.compacted_through), records.pack_seqnos(record.restarting)
            fields = (record.epoch, record.owner, checkpoints, history, record.archived, through, restarting)
            view = (records.view_bytes(partition, len(record.checkpoints)), records.pack_view(record))
            calls.append((keys, (version, *fields, records.pack_history(old), *view, self._servers, int(goes_back))))
        replies = self._link.run_all("begin", calls)
        assert self._first_servers or not calls, "an epoch begins in servers that we know"
        self._has_begun = True
        if _NO_VIEW in replies:
            raise lost_record(self._keys.view)
        return {partition for partition, reply in zip(successors, replies, strict=True) if not reply}


def _pack_changes(checkpoints: Mapping[int, Mapping[int, Checkpoint]], width: int) -> tuple[bytes, bytes]:
    """Pack numbers and changed checkpoints, by partition, of *width* vbuckets each, as advance.lua takes them."""
    assert width > 0
    counts = struct.pack(f">{len(checkpoints)}H", *map(len, checkpoints.values()))
    changed = chain.from_iterable([sorted(changes.items()) for changes in checkpoints.values()])
    return counts, b"".join([_CHANGE.pack(vb % width, *checkpoint) for vb, checkpoint in changed])
