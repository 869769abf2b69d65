"""One vbucket: the newest version of each key, in the order of its seqnos. No I/O.

Two structures hold the items. `_newest` finds a key's newest version. `_log` holds versions in the order of their
seqnos, superseded ones among them: they are what comes back when a failover loses the newest. They are compacted away
once they are older than MAX_LOSS seqnos and outnumber the rest.
"""

import time
from bisect import bisect_right
from collections.abc import Callable
from enum import IntEnum
from itertools import pairwise
from operator import attrgetter
from typing import NamedTuple, Protocol

from channelindex.feeds.base import XATTR
from channelindex.mcbp import split_xattrs
from devbucket.history import FailoverLog, SourceCheckpoints, rollback_seqno
from devbucket.items import (
    ALIVE,
    DELETED,
    EXPIRED,
    SYSTEM_EVENT,
    Item,
    datatype_of,
    is_compressible,
    join_value,
    system_xattrs,
)
from devbucket.locks import Locks
from devbucket.manifest import CollectionEvent

MAX_LOSS = 100
"""Seqnos of a vbucket that a failover can lose at most; bounds the superseded versions kept in memory and on disk."""

COMPRESSION_MODES = ("off", "passive", "active")
"""Values that memory holds compressed: none; those that came compressed, without xattrs; all that get shorter."""

_seqno_of = attrgetter("seqno")


class VBucketState(IntEnum):
    """States of a vbucket, as the protocol numbers them."""

    ACTIVE = 1
    REPLICA = 2
    PENDING = 3
    DEAD = 4


class Saved(NamedTuple):
    """The part of a vbucket that a file keeps besides its items."""

    state: int
    high_seqno: int
    purge_seqno: int
    kept_from: int
    max_cas: int
    max_deleted_rev: int
    failover_log: bytes


class Watcher(Protocol):
    """Who streams a vbucket and wants to hear of it."""

    def changed(self) -> None:
        """Hear that there are new seqnos."""

    def finish(self, reason: int) -> None:
        """Hear that the vbucket ends all its streams for *reason*, a STREAM_END code."""


class VBucket:
    """One vbucket. Seqnos rise by one with each change; CAS rise and never repeat within a vbucket."""

    def __init__(self, vb: int, clock: Callable[[], float] = time.time) -> None:
        self.vb = vb
        self.state = VBucketState.ACTIVE
        self.failover_log = FailoverLog()
        self.high_seqno = 0
        self.purge_seqno = 0
        self.memory_from = 1  # seqnos below are on disk: who starts below is sent a disk snapshot first
        self._checkpoints = SourceCheckpoints()
        self.watchers: set[Watcher] = set()
        self.locks = Locks(clock)
        self._clock = clock
        self._newest: dict[bytes, Item] = {}
        self._log: list[Item] = []
        self._n_superseded = 0
        self._kept_from = 0  # failovers must not cut below: superseded versions up to here may be gone
        self._replicated_seqno = 0  # durable writes: most copies have what is up to here
        self._synced_seqno = 0  # durable writes: what is up to here is on disk
        self._max_cas = 0
        self._max_deleted_rev = 0
        self.unsaved = True  # whether a file lacks something
        self.rewritten = False  # whether a file has items that are gone here
        self.persisted_seqno = 0
        self.compression_mode = COMPRESSION_MODES[0]

    def find(self, key: bytes) -> Item | None:
        """Return the newest version of *key*, alive or a tombstone. A document that is due expires now."""
        item = self._newest.get(key)
        if item is None or item.deleted:
            return item
        if item.expiry and item.expiry <= self._clock():
            return self.delete(key, fate=EXPIRED)
        if not item.resident:
            item.store(resident=True)
        return item

    def write(
        self,
        key: bytes,
        value: bytes,
        datatype: int,
        *,
        cas: int | None = None,
        flags: int = 0,
        expiry: int = 0,
        compressed: bool = False,
    ) -> Item:
        """Store a new version of *key*; *value* and *datatype* include the xattrs, *expiry* is absolute.

        *compressed*: the client sent it so.
        """
        item = self._next_item(key, cas or self.next_cas(), value, datatype, flags=flags, expiry=expiry)
        item.compressed = compressed if self.compression_mode == "passive" else self._is_compressed_here(item)
        return self._append(item)

    def _is_compressed_here(self, item: Item) -> bool:
        return self.compression_mode == "active" and not item.deleted and is_compressible(item.value)

    def set_compression(self, mode: str) -> None:
        """Set how memory holds values: "active" compresses those that are there, the others leave them as they are."""
        assert mode in COMPRESSION_MODES
        self.compression_mode = mode
        for item in self._newest.values() if mode == "active" else ():
            item.store(compressed=self._is_compressed_here(item))

    def delete(
        self, key: bytes, *, cas: int | None = None, fate: int = DELETED, xattrs: dict[str, bytes] | None = None
    ) -> Item:
        """Leave a tombstone of *key*, with *xattrs* or else the system xattrs that the document had."""
        old = self._newest.get(key)
        if xattrs is None:
            xattrs = system_xattrs(old.xattrs()) if old is not None else {}
        value, datatype = join_value(xattrs, b"")
        return self._append(self._next_item(key, cas or self.next_cas(), value, datatype, fate=fate))

    def note_event(self, event: CollectionEvent) -> None:
        """Give an event of the bucket's collections a seqno."""
        self._append(self._next_item(event.key(), 0, event.value(), 0, fate=SYSTEM_EVENT))

    def next_cas(self) -> int:
        """Return a new CAS, above all before it: a hybrid clock of nanoseconds with a counter in the low 16 bits."""
        before = self._max_cas
        self._max_cas = max(int(self._clock() * 1e9) & ~0xFFFF, self._max_cas + 1)
        assert self._max_cas > before, "CAS rise and never repeat"
        return self._max_cas

    def load(self, seqno: int, key: bytes, value: bytes, *, has_xattrs: bool = False) -> None:
        """Store *value* under a given seqno, above all that are there. Tells no watcher: see `settle`.

        Raises:
            ValueError: the seqno is not above the vbucket's high seqno.
        """
        if seqno <= self.high_seqno:
            raise ValueError(f"vbucket {self.vb}: seqno {seqno} is not above the high seqno {self.high_seqno}")
        self.high_seqno = seqno - 1
        datatype = datatype_of(split_xattrs(value)[1]) | XATTR if has_xattrs else datatype_of(value)
        self._store(self._next_item(key, self.next_cas(), value, datatype))

    def settle(self) -> None:
        """Be as after a clean restart: streams begin from disk, new seqnos begin a source checkpoint.

        Documents, not tombstones, were read back into memory.
        """
        self.memory_from = self.high_seqno + 1
        self._checkpoints.begin_at(self.memory_from)
        for item in self._newest.values():
            if not item.resident:
                item.store(resident=True)
        self._tell_changed()

    def evict(self, every: int) -> int:
        """Let the value of each *every*th document be on disk only, whence streams read it; returns how many."""
        self.settle()
        assert every > 0
        evicted = [item for item in self._newest.values() if item.fate == ALIVE][::every]
        for item in evicted:
            item.store(resident=False)
        return len(evicted)

    def new_checkpoint(self) -> None:
        """Close the open source checkpoint: what comes is sent as a snapshot of its own."""
        self._checkpoints.close(self.high_seqno)

    def checkpoint_of(self, seqno: int) -> tuple[int, int]:
        """Return the first and the last seqno of the source checkpoint that holds *seqno*."""
        return self._checkpoints.holding(seqno, self.high_seqno)

    def items_after(self, seqno: int, until: int | None = None) -> list[Item]:
        """Return the newest versions of all keys that changed after *seqno*, in the order of their seqnos.

        With *until*, the versions that were the newest at that seqno, which may not be before the last checkpoint.
        """
        end = self.high_seqno if until is None else until
        assert self._kept_from <= end <= self.high_seqno, "versions that were superseded before may be gone"
        first = bisect_right(self._log, seqno, key=_seqno_of)
        last = len(self._log) if end == self.high_seqno else bisect_right(self._log, end, key=_seqno_of)
        return [item for item in self._log[first:last] if not 0 < item.superseded_by <= end]

    def rollback_for(
        self, vbuuid: int, start: int, snap_start: int, snap_end: int, *, strict: bool = False, purge_seen: int = 0
    ) -> int | None:
        """Return the seqno to which a client with this resume position must roll back; None if it may resume."""
        seqno = rollback_seqno(
            self.failover_log,
            vbuuid,
            start,
            snap_start,
            snap_end,
            high_seqno=self.high_seqno,
            purge_seqno=self.purge_seqno if purge_seen < self.purge_seqno else 0,
            strict=strict,
        )
        assert seqno is None or seqno <= start, "a rollback is no step forward"
        return seqno

    def check(self) -> None:
        """Assert what holds after every command."""
        seqnos = [item.seqno for item in self._log]
        assert all(one < after for one, after in pairwise(seqnos)), "the log is in the order of its seqnos"
        assert not seqnos or seqnos[-1] <= self.high_seqno
        assert self.purge_seqno <= self.high_seqno
        assert self._synced_seqno <= self.high_seqno
        assert self._replicated_seqno <= self.high_seqno
        assert self._kept_from <= self.high_seqno
        assert self.persisted_seqno <= self.high_seqno or self.rewritten, "a file has nothing that was never here"
        newest = [item for item in self._log if not item.superseded_by]
        assert {item.key: item for item in newest} == self._newest, "each key's newest version, once"
        assert self._n_superseded == len(self._log) - len(newest)
        self.failover_log.check(self.high_seqno)
        self._checkpoints.check()

    def note_durable(self, *, on_disk: bool) -> None:
        """Note that the last write was durable: no failover loses it or what came before it; *on_disk*: no crash."""
        self._replicated_seqno = self.high_seqno
        if on_disk:
            self._synced_seqno = self.high_seqno

    def most_to_lose(self, *, by_crash: bool = False) -> int:
        """Return how many seqnos a failover can lose, or a crash of the node, which goes on from its disk.

        Durable writes bound it; and of what was before, superseded versions may be gone.
        """
        safe = self._synced_seqno if by_crash else self._replicated_seqno
        assert max(safe, self._kept_from) <= self.high_seqno
        return self.high_seqno - max(safe, self._kept_from)

    def failover(self, lose: int, *, by_crash: bool = False) -> None:
        """Lose the last seqnos, as if a replica that never got them took over; a new history begins.

        Raises:
            ValueError: more seqnos than `most_to_lose`.
        """
        cut = self.high_seqno - lose
        if not 0 <= lose <= self.most_to_lose(by_crash=by_crash):
            raise ValueError(f"vbucket {self.vb}: cannot lose {lose} of {self.high_seqno} seqnos")
        first = bisect_right(self._log, cut, key=_seqno_of)
        lost = self._log[first:]
        del self._log[first:]
        for item in lost:
            self._newest.pop(item.key, None)
        for item in self._log:
            if item.superseded_by > cut:
                item.superseded_by = 0
                self._newest[item.key] = item
        self._n_superseded = len(self._log) - len(self._newest)
        assert self._n_superseded >= 0, "each key's newest version is in the log"
        self.high_seqno = cut
        self._replicated_seqno = min(self._replicated_seqno, cut)
        self.failover_log.branch(cut)
        self._checkpoints.cut_behind(cut)
        self.unsaved = self.rewritten = True

    def set_state(self, state: VBucketState) -> bool:
        """Become active, replica, pending or dead; becoming active begins a new history. Whether it was a change."""
        if state == self.state:
            return False
        self.state = state
        self.unsaved = True
        if state == VBucketState.ACTIVE:
            self.failover_log.branch(self.high_seqno)
        return True

    def saved(self) -> Saved:
        """Return what a file has to keep besides the items."""
        return Saved(
            self.state,
            self.high_seqno,
            self.purge_seqno,
            self._kept_from,
            self._max_cas,
            self._max_deleted_rev,
            self.failover_log.packed(),
        )

    def unsaved_items(self) -> list[Item]:
        """Return the items that a file lacks: all, if it has items that are gone here."""
        return (
            self._log if self.rewritten else self._log[bisect_right(self._log, self.persisted_seqno, key=_seqno_of) :]
        )

    def mark_saved(self) -> None:
        """Note that a file has everything."""
        assert self.persisted_seqno <= self.high_seqno or self.rewritten, "a file has nothing that was never here"
        self.unsaved = self.rewritten = False
        self.persisted_seqno = self.high_seqno

    def restore(self, saved: Saved, items: list[Item]) -> None:
        """Be what a file kept; *items* are in the order of their seqnos."""
        self.state = VBucketState(saved.state)
        self.failover_log = FailoverLog.unpacked(saved.failover_log)
        self.purge_seqno, self._kept_from = saved.purge_seqno, saved.kept_from
        self._max_cas = saved.max_cas
        self._log = items
        for item in items:
            if (old := self._newest.get(item.key)) is not None:
                old.superseded_by = item.seqno
            self._newest[item.key] = item
        self._n_superseded = len(items) - len(self._newest)
        assert self._n_superseded >= 0, "each key's newest version is in the log"
        self._max_deleted_rev = saved.max_deleted_rev
        self.high_seqno = saved.high_seqno
        self.mark_saved()
        self.settle()

    def end_streams(self, reason: int) -> None:
        """End all streams of this vbucket."""
        for watcher in tuple(self.watchers):
            watcher.finish(reason)

    def purge(self) -> int:
        """Forget all tombstones but one at the high seqno; returns the purge seqno."""
        purged = [item for item in self._newest.values() if item.deleted and item.seqno < self.high_seqno]
        for item in purged:
            del self._newest[item.key]
        self.purge_seqno = max([item.seqno for item in purged] + [self.purge_seqno])
        assert self.purge_seqno <= self.high_seqno
        self._kept_from = max(self._kept_from, self.purge_seqno)
        self._log = [item for item in self._log if item.key in self._newest]
        self._compact()
        return self.purge_seqno

    def _append(self, item: Item) -> Item:
        self._store(item)
        self._tell_changed()
        return item

    def _next_item(
        self, key: bytes, cas: int, value: bytes, datatype: int, *, flags: int = 0, expiry: int = 0, fate: int = ALIVE
    ) -> Item:
        old = self._newest.get(key)
        return Item(
            self.vb,
            key,
            self.high_seqno + 1,
            (self._max_deleted_rev if old is None else old.rev) + 1,
            cas,
            value=value,
            datatype=datatype,
            flags=flags,
            expiry=expiry,
            fate=fate,
            changed_at=int(self._clock()),
        )

    def _store(self, item: Item) -> None:
        assert item.seqno == self.high_seqno + 1, "seqnos rise by one"
        old = self._newest.get(item.key)
        if old is not None:
            old.superseded_by = item.seqno
            self._n_superseded += 1
        if item.deleted:
            self._max_deleted_rev = max(self._max_deleted_rev, item.rev)
        self.unsaved = True
        self.locks.release(item.key)
        self._newest[item.key] = item
        self._log.append(item)
        self.high_seqno = item.seqno
        if self._n_superseded > len(self._newest) + 2 * MAX_LOSS:
            self._compact()

    def _compact(self) -> None:
        """Drop the superseded versions that no failover may ask for."""
        self._kept_from = max(self._kept_from, self.high_seqno - MAX_LOSS)
        self.unsaved = self.rewritten = True
        self._log = [item for item in self._log if not 0 < item.superseded_by <= self._kept_from]
        self._checkpoints.merge_up_to(self._kept_from)
        self._n_superseded = len(self._log) - len(self._newest)
        assert self._n_superseded >= 0, "each key's newest version is in the log"

    def _tell_changed(self) -> None:
        for watcher in self.watchers:
            watcher.changed()
