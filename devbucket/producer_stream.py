"""One DCP stream: what of a vbucket was sent, and what comes next. No I/O.

A snapshot is taken when its marker is sent: what it lists is sent even where a newer version supersedes it meanwhile,
so that the client has a consistent view at the snapshot's end. A stream ends only between snapshots.
"""

import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

from channelindex import mcbp
from channelindex.mcbp import Op
from devbucket.items import FROM_DISK, Item
from devbucket.manifest import KeyFilter
from devbucket.vbucket import VBucket

# Reasons of STREAM_END (commands/stream-end.md).
END_OK = 0x00
END_CLOSED = 0x01

MEMORY = 0x01
DISK = 0x02
CHECKPOINT = 0x04

TURN_BYTES = 16 * 1024
"""Bytes that a stream sends before the next one has its turn. With larger turns small vbuckets wait for big ones."""

_MARKER_EXTRAS = struct.Struct(">QQI")
_MARKER_V2_2 = b"\x02"
_MARKER_V2_2_VALUE = struct.Struct(">QQIQQQQ")  # start, end, flags; visible, completed, purge and prepared seqnos
_ADVANCED_BYTES = mcbp.HEADER_BYTES + 8
_END_BYTES = mcbp.HEADER_BYTES + 4


class Range(NamedTuple):
    """A client's request: everything after `start`, up to the snapshot that holds `end`."""

    start: int
    end: int
    snap_start: int


class ProducerStream:
    """The stream of one vbucket on one connection. It calls `on_ready` whenever it may have something to send."""

    def __init__(
        self,
        vbucket: VBucket,
        opaque: int,
        requested: Range,
        mode: int,
        on_ready: Callable[["ProducerStream"], None],
        *,
        from_disk: bool = False,
        key_filter: KeyFilter | None = None,
        with_advances: bool = False,
        with_purges: bool = False,
    ) -> None:
        assert requested.start <= requested.end
        self.vbucket = vbucket
        self.done = False
        self.queued = False  # the producer's: whether the stream waits for its turn
        self._opaque = opaque
        self._opaque_bytes = opaque.to_bytes(4, "big")
        self._mode = mode
        self._on_ready = on_ready
        self._from_disk = from_disk
        self._position = requested.start  # the last seqno that was sent or is in the snapshot being sent
        self._end = requested.end
        self._snap_start: int | None = requested.snap_start  # of the first marker
        self._key_filter = key_filter
        self._with_advances = with_advances
        self._with_purges = with_purges
        self._snapshot_mode = mode
        self._advance_to: int | None = None  # the end of a snapshot of which the last seqno is not sent
        self._items: Sequence[Item] = ()
        self._next = 0
        self._end_reason: int | None = None
        vbucket.watchers.add(self)

    @property
    def ended(self) -> bool:
        """Return whether nothing but a STREAM_END is left to send."""
        return self._end_reason is not None

    @property
    def has_more(self) -> bool:
        """Return whether `take` would give something."""
        return not self.done and (
            self._next < len(self._items)
            or self._advance_to is not None
            or self.ended
            or self._position >= self._end
            or self._position < self.vbucket.high_seqno
        )

    def changed(self) -> None:
        """Hear that the vbucket has new seqnos."""
        self._on_ready(self)

    def finish(self, reason: int) -> None:
        """Send nothing more but a STREAM_END."""
        self._items, self._next, self._advance_to = (), 0, None
        self._end_reason = reason
        self.release()
        self._on_ready(self)

    def release(self) -> None:
        """Watch the vbucket no longer."""
        self.vbucket.watchers.discard(self)

    def take(self, out: list[bytes], room: int) -> int:
        """Append messages to *out* until they fill *room*, which the last one may exceed; returns their bytes."""
        assert room > 0
        assert not self.done, "it has sent its end"
        room = min(room, TURN_BYTES)
        size = 0
        while size < room:
            if self._next < len(self._items):
                size += self._take_items(out, room - size)
            elif self._advance_to is not None:
                out.append(self._message(Op.DCP_SEQNO_ADVANCED, self._advance_to.to_bytes(8, "big")))
                self._advance_to = None
                size += _ADVANCED_BYTES
            elif self._end_reason is not None or self._position >= self._end:
                out.append(self._end_message(self._end_reason or END_OK))
                self.done = True
                self.release()
                return size + _END_BYTES
            elif self._position < self.vbucket.high_seqno:
                if marker := self._begin_snapshot():
                    out.append(marker)
                    size += len(marker)
            else:
                break
        return size

    def _take_items(self, out: list[bytes], room: int) -> int:
        items, mode, opaque = self._items, self._snapshot_mode, self._opaque_bytes
        at, n_items, size = self._next, len(self._items), 0
        while at < n_items and size < room:
            item = items[at]
            at += 1
            if item.mode != mode:
                item.encode_for(mode)
            out += (item.head, opaque, item.middle, item.payload)
            size += item.size
        self._next = at
        return size

    def _begin_snapshot(self) -> bytes:
        """Take the next snapshot and return its marker. The first one starts where the client's snapshot did.

        Nothing is returned, and nothing to be sent, where a client wants nothing of it and cannot be informed of it.
        """
        flags, end = self._next_snapshot()
        self._items, self._next = self.vbucket.items_after(self._position, end), 0
        if self._key_filter is not None and not self._choose(self._key_filter, end):
            self._position = end
            return b""
        assert end > self._position, "a snapshot goes on from the one before"
        start = self._snap_start
        if start is None:
            start = self._items[0].seqno if self._items else self._position + 1
        self._snap_start = None
        self._snapshot_mode = self._mode | (FROM_DISK if flags & DISK else 0)
        self._position = end
        return self._marker(start, end, flags)

    def check(self) -> None:
        """Assert what holds after every step."""
        assert 0 <= self._next <= len(self._items)
        assert self._position <= self.vbucket.high_seqno or self.ended or not self.has_more
        assert not self.done or self not in self.vbucket.watchers, "who has sent all watches no more"

    def _marker(self, start: int, end: int, flags: int) -> bytes:
        """Return a marker: of version 2.2 for a disk snapshot, to who knows it.

        Source: couchbase/kv_engine master, docs/dcp/documentation/commands/stream-request-value.md and
        include/memcached/protocol_binary.h of commit eba42989 (read): the purge seqno comes before the high prepared
        seqno. Who took that one for a purge seqno would miss deletions, so it is not 0 here. That a marker of memory
        stays what it was is a guess.
        """
        if not (self._with_purges and flags & DISK):
            return self._message(Op.DCP_SNAPSHOT_MARKER, _MARKER_EXTRAS.pack(start, end, flags))
        assert self.vbucket.purge_seqno <= self.vbucket.high_seqno
        value = _MARKER_V2_2_VALUE.pack(start, end, flags, end, 0, self.vbucket.purge_seqno, end)
        return self._message(Op.DCP_SNAPSHOT_MARKER, _MARKER_V2_2, value)

    def _choose(self, selects: KeyFilter, end: int) -> bool:
        """Leave only what the filter selects of a snapshot; whether there is anything to send of it."""
        assert self._position < end
        self._items = [item for item in self._items if selects(item.key)]
        if self._with_advances and not (self._items and self._items[-1].seqno == end):
            self._advance_to = end
        return bool(self._items) or self._advance_to is not None

    def _next_snapshot(self) -> tuple[int, int]:
        """Return the next snapshot's flags and last seqno: from disk all there is, from memory one checkpoint."""
        if self._from_disk or self._position + 1 < self.vbucket.memory_from:
            return DISK, self.vbucket.high_seqno
        first, last = self.vbucket.checkpoint_of(self._position + 1)
        return MEMORY | (CHECKPOINT if self._position < first else 0), last

    def _end_message(self, reason: int) -> bytes:
        return self._message(Op.DCP_STREAM_END, reason.to_bytes(4, "big"))

    def _message(self, opcode: int, extras: bytes, value: bytes = b"") -> bytes:
        return mcbp.pack_request(opcode, vbucket=self.vbucket.vb, opaque=self._opaque, extras=extras, value=value)
