"""The streams of one node, one per vbucket: where each is, and what has to be asked of the node next. No I/O.

A vbucket that moves takes its stream along, from the `Streams` of one node to those of another. They outlive
connections. A stream's position is derived from three things: the newest seqno received, which the parser moves; the
snapshot it lies in; and the newest vbuuid of the failover log under which it was received.
"""

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum

import msgspec

from channelindex.backoff import Backoff
from channelindex.errors import InvariantBroken, ProtocolError
from channelindex.feeds.base import FailoverLog
from channelindex.feeds.dcp.exchange import Request
from channelindex.mcbp import Frame, Op
from channelindex.model import Checkpoint

LIVE = (1 << 64) - 1
"""The end seqno of a stream that does not end."""

_ACTIVE_VB_ONLY = 0x10
"""Stream flag: without it replica and pending vbuckets accept streams too, of a history that may never be."""
_STREAM_REQUEST = struct.Struct(">IIQQQQQ")
_SNAPSHOT_RANGE = struct.Struct(">QQ")
_MARKER_2_2 = b"\x02"
_PURGE_SEQNO_END = 44  # behind start, end, type u32, max visible and high completed seqno; a high prepared one follows
_MOST_REQUESTED = 64
"""Stream requests without an answer. Each may start a backfill; hundreds at once starve a node's other work."""
_FIRST_RETRY_S = 0.1
_LONGEST_RETRY_S = 5.0


class State(Enum):
    """Of one stream."""

    WAITING = "waiting"  # to be requested, not before `retry_at`
    REQUESTED = "requested"
    OPEN = "open"
    ROLLED_BACK = "rolled back"  # the consumer has the rollback; nothing more comes
    ENDED = "ended"  # its end seqno was reached
    DROPPED = "dropped"  # no longer subscribed to


class Stream:
    """One vbucket's. `checkpoint` is where it resumes while it is not open, `seqno` the newest received while it is.

    `reach` is that of the checkpoint at which it was opened: the end of the snapshot in which it resumed.
    """

    __slots__ = (
        "backoff",
        "checkpoint",
        "end_seqno",
        "is_subscribed",
        "opaque",
        "purge_seqno",
        "reach",
        "retry_at",
        "seqno",
        "snap_end",
        "snap_start",
        "state",
        "vb",
        "vbuuid",
    )

    def __init__(self, vb: int, checkpoint: Checkpoint, end_seqno: int) -> None:
        if not checkpoint.snap_start <= checkpoint.seqno <= checkpoint.snap_end:
            raise InvariantBroken(f"vbucket {vb}: {checkpoint} lies outside of its snapshot")
        self.vb = vb
        self.checkpoint = checkpoint
        self.end_seqno = end_seqno
        self.state = State.WAITING
        self.opaque = 0
        self.retry_at = 0.0
        self.is_subscribed = True
        self.backoff = Backoff(_FIRST_RETRY_S, _LONGEST_RETRY_S)
        self.vbuuid = checkpoint.vbuuid
        self.seqno = checkpoint.seqno
        self.snap_start = checkpoint.snap_start
        self.snap_end = checkpoint.snap_end
        self.purge_seqno = checkpoint.purge_seqno
        self.reach = checkpoint.reach

    def request(self, stream_filter: bytes = b"", *, with_purge_seqno: bool = False) -> Request:
        """Ask for everything behind the checkpoint that *stream_filter* lets through.

        With *with_purge_seqno* say up to where the source had purged when it sent what we have: as long as it has
        purged no more, it does not roll back a checkpoint below that.
        """
        if with_purge_seqno and self.checkpoint.purge_seqno:
            value = msgspec.json.decode(stream_filter or b"{}")
            stream_filter = msgspec.json.encode({**value, "purge_seqno": str(self.checkpoint.purge_seqno)})
        at = self.checkpoint
        extras = _STREAM_REQUEST.pack(
            _ACTIVE_VB_ONLY, 0, at.seqno, self.end_seqno, at.vbuuid, at.snap_start, at.snap_end
        )
        return Request(Op.DCP_STREAM_REQ, extras=extras, value=stream_filter, vb=self.vb)

    def enter_snapshot(self, marker: Frame) -> tuple[int, ...]:
        """Take a snapshot marker, and return what it says: start, end, and a purge seqno where it has one.

        A snapshot in which we resumed lasts until its end: one that comes before is part of it, and said to be as wide.
        Version 1 says it in the extras, versions 2.x in the value; from 2.2 on with the seqno up to which the source
        had purged tombstones (kv_engine, DCP_SNAPSHOT_MARKER).

        Raises:
            ProtocolError: it says no range.
        """
        body = marker.extras if len(marker.extras) >= _SNAPSHOT_RANGE.size else marker.value
        if len(body) < _SNAPSHOT_RANGE.size:
            raise ProtocolError(f"snapshot marker of {len(marker.extras)} + {len(marker.value)} bytes")
        start, end = _SNAPSHOT_RANGE.unpack_from(body)
        if start > end:
            raise ProtocolError(f"snapshot from {start} to {end}")
        self.snap_start, self.snap_end = start, end
        start, end = self._snapshot_at(self.seqno)
        if marker.extras != _MARKER_2_2 or len(body) < _PURGE_SEQNO_END:
            return start, end
        self.purge_seqno = int.from_bytes(body[_PURGE_SEQNO_END - 8 : _PURGE_SEQNO_END], "big")
        return start, end, self.purge_seqno

    def position(self, seqno: int) -> Checkpoint:
        """The position to resume at when *seqno* is the newest received."""
        start, end = self._snapshot_at(seqno)
        assert seqno >= self.checkpoint.seqno, "a stream goes on"
        if start <= seqno < end:
            return Checkpoint(self.vbuuid, seqno, start, end, self.purge_seqno)
        # Between snapshots: the one received is complete, and of one announced beyond *seqno* nothing has come.
        return Checkpoint(self.vbuuid, seqno, seqno, seqno, self.purge_seqno)

    def _snapshot_at(self, seqno: int) -> tuple[int, int]:
        """The range of the snapshot that *seqno* lies in, with the one that we resumed in if that goes on."""
        if seqno >= self.reach:
            return self.snap_start, self.snap_end
        resumed = self.checkpoint
        return min(self.snap_start, resumed.snap_start), max(self.snap_end, resumed.snap_end)


class Streams:
    """All streams that one node has, or is to have.

    Invariant: `open_by_opaque` has exactly the streams that are OPEN.
    """

    def __init__(self, checkpoints: Mapping[int, Checkpoint], end_seqnos: Mapping[int, int] | None = None) -> None:
        ends = end_seqnos or {}
        self._by_vb = {vb: Stream(vb, at, ends.get(vb, LIVE)) for vb, at in checkpoints.items()}
        self._waiting: dict[int, Stream] = {}
        self._n_requested = 0
        self._closed_opaque_by_vb: dict[int, int] = {}
        self.open_by_opaque: dict[int, Stream] = {}
        for stream in self._by_vb.values():
            self._wait(stream, 0.0)

    def add(self, checkpoints: Mapping[int, Checkpoint]) -> None:
        """Stream these vbuckets too, each from its checkpoint; none of them is streamed yet."""
        assert self._by_vb.keys().isdisjoint(checkpoints), "a vbucket has one stream"
        for vb, checkpoint in checkpoints.items():
            self._by_vb[vb] = stream = Stream(vb, checkpoint, LIVE)
            self._wait(stream, 0.0)

    def drop(self, vbuckets: Iterable[int]) -> list[int]:
        """Stream these vbuckets no more; return those whose stream the server has to close."""
        open_vbuckets = []
        for vb in vbuckets:
            stream = self._by_vb.pop(vb)
            if stream.state is State.OPEN:
                self._close(stream)
                open_vbuckets.append(vb)
            self._waiting.pop(vb, None)
            if stream.state is not State.REQUESTED:  # else its answer is still to come
                stream.state = State.DROPPED
            stream.is_subscribed = False
        return open_vbuckets

    def __contains__(self, vb: int) -> bool:
        return vb in self._by_vb

    def __len__(self) -> int:
        return len(self._by_vb)

    @property
    def vbuckets(self) -> tuple[int, ...]:
        """Those that have a stream here."""
        return tuple(self._by_vb)

    @property
    def all_running(self) -> bool:
        """No stream waits to be requested."""
        return not self._waiting

    @property
    def all_ended(self) -> bool:
        """True if every stream has sent everything up to its end seqno; never for live ones."""
        return all(stream.state is State.ENDED for stream in self._by_vb.values())

    def opened(self, opaque: int, vb: int) -> Stream | None:
        """The open stream that a frame with *opaque* and *vb* belongs to; None for one that is no more.

        Raises:
            ProtocolError: this connection never had such a stream. To drop the frame could be to lose a document.
        """
        stream = self.open_by_opaque.get(opaque)
        if stream is None and self._closed_opaque_by_vb.get(vb) == opaque:
            return None  # it was on its way when the stream was closed
        if stream is None or stream.vb != vb:
            raise no_such_stream(vb, opaque)
        return stream

    def next_retry(self) -> float:
        """Time of the next request for a waiting stream; infinity while none waits, or an answer must come first."""
        if not self._waiting or self._n_requested >= _MOST_REQUESTED:
            return float("inf")
        return min((stream.retry_at for stream in self._waiting.values()), default=float("inf"))

    def take_due(self, now: float) -> Iterator[Stream]:
        """The streams to request now: those whose time has come, a bounded number without an answer."""
        room = _MOST_REQUESTED - self._n_requested
        if room <= 0 or not self._waiting:
            return
        for stream in [stream for stream in self._waiting.values() if stream.retry_at <= now][:room]:
            del self._waiting[stream.vb]
            stream.state = State.REQUESTED
            self._n_requested += 1
            assert self._n_requested <= _MOST_REQUESTED
            yield stream

    def accept(self, stream: Stream, opaque: int, failover_log: FailoverLog) -> None:
        """The server opened *stream*.

        Its history is now that of the log's newest entry, also for seqnos below where that branched off: the server
        has just agreed that ours is no other up to here, and a snapshot that ends on the new branch is of it.
        """
        assert opaque not in self.open_by_opaque, "a stream's opaque is used once"
        self._leave_requested(stream, State.OPEN)
        assert failover_log, "there is always a branch of history"
        stream.opaque = opaque
        stream.backoff.reset()
        stream.vbuuid = failover_log[0][0]
        stream.seqno = stream.checkpoint.seqno
        stream.snap_start, stream.snap_end = stream.checkpoint.snap_start, stream.checkpoint.snap_end
        stream.purge_seqno = stream.checkpoint.purge_seqno
        stream.reach = stream.checkpoint.reach
        self.open_by_opaque[opaque] = stream

    def leave(self, stream: Stream, opened_as: int | None = None) -> None:
        """The server answered the request of a stream that was dropped meanwhile: it may have opened it."""
        self._leave_requested(stream, State.DROPPED)
        if opened_as is not None:
            self._closed_opaque_by_vb[stream.vb] = opened_as

    def postpone(self, stream: Stream, now: float) -> None:
        """The server would not open *stream* now: ask again later."""
        self._leave_requested(stream, State.WAITING)
        self._wait(stream, now + stream.backoff.next_delay_s())

    def roll_back(self, stream: Stream) -> None:
        """The server took back what *stream* had. It stays closed."""
        self._leave_requested(stream, State.ROLLED_BACK)

    def resume(self, vb: int, checkpoint: Checkpoint) -> None:
        """The rollback of *vb* concerns nobody: stream it from *checkpoint*."""
        stream = self._by_vb[vb]
        assert checkpoint.seqno <= stream.checkpoint.seqno, "a rollback is no step forward"
        assert stream.state is State.ROLLED_BACK, "only a stream that is closed can begin elsewhere"
        stream.checkpoint = checkpoint
        self._wait(stream, 0.0)

    def advance(self, stream: Stream, seqno: int) -> None:
        """*seqno* came without a document.

        Raises:
            ProtocolError: it is not beyond the newest.
        """
        if seqno <= stream.seqno:
            raise ProtocolError(f"vbucket {stream.vb}: seqno {seqno} after {stream.seqno}")
        stream.seqno = seqno

    def end(self, stream: Stream, now: float, *, complete: bool) -> None:
        """The server closed *stream*; *complete* if because the end seqno was reached. Else it is to be reopened."""
        self._close(stream)
        if complete and stream.end_seqno != LIVE:
            stream.state = State.ENDED
        else:
            self._wait(stream, now + stream.backoff.next_delay_s())

    def check(self) -> None:
        """Assert what holds after every event."""
        is_open = {vb for vb, stream in self._by_vb.items() if stream.state is State.OPEN}
        assert {stream.vb for stream in self.open_by_opaque.values()} == is_open, "all that is open, and nothing else"
        assert all(stream.opaque == opaque for opaque, stream in self.open_by_opaque.items())
        waiting = {vb for vb, stream in self._by_vb.items() if stream.state is State.WAITING}
        assert self._waiting.keys() == waiting, "what waits is to be requested"
        requested = sum(stream.state is State.REQUESTED for stream in self._by_vb.values())
        assert requested <= self._n_requested <= _MOST_REQUESTED, "some may be of streams that were dropped"
        for stream in self._by_vb.values():
            assert stream.is_subscribed, "what was dropped is not here"
            assert stream.checkpoint.snap_start <= stream.checkpoint.seqno <= stream.checkpoint.snap_end

    def disconnect(self) -> None:
        """The connection is gone: whatever was open or asked for waits to be requested again."""
        for stream in self._by_vb.values():
            if stream.state is State.OPEN:
                self._close(stream)
                self._wait(stream, 0.0)
            elif stream.state is State.REQUESTED:
                self._wait(stream, 0.0)
        self._n_requested = 0
        self._closed_opaque_by_vb.clear()
        assert not self.open_by_opaque, "nothing is open without a connection"

    def release(self, stays: Callable[[int], bool]) -> list[Stream]:
        """Give up the waiting streams whose vbucket does not stay here."""
        leaving = [stream for vb, stream in self._waiting.items() if not stays(vb)]
        for stream in leaving:
            del self._waiting[stream.vb], self._by_vb[stream.vb]
        return leaving

    def release_all(self) -> list[Stream]:
        """Give up all streams; none is open or asked for any more."""
        self.disconnect()
        leaving = list(self._by_vb.values())
        self._by_vb.clear()
        self._waiting.clear()
        return leaving

    def adopt(self, stream: Stream) -> None:
        """Take over *stream*, which another node has released; it need not wait for its next attempt there."""
        assert stream.vb not in self._by_vb, "a vbucket has one stream"
        assert stream.state not in (State.REQUESTED, State.OPEN), "the other node has released it"
        self._by_vb[stream.vb] = stream
        if stream.state is State.WAITING:
            self._wait(stream, 0.0)

    def _leave_requested(self, stream: Stream, state: State) -> None:
        assert stream.state is State.REQUESTED, "an answer is to a request"
        self._n_requested -= 1
        assert self._n_requested >= 0
        stream.state = state

    def _close(self, stream: Stream) -> None:
        assert stream.state is State.OPEN
        del self.open_by_opaque[stream.opaque]
        self._closed_opaque_by_vb[stream.vb] = stream.opaque
        stream.checkpoint = stream.position(stream.seqno)

    def _wait(self, stream: Stream, retry_at: float) -> None:
        assert stream.is_subscribed, "what was dropped is not requested"
        if stream.checkpoint.seqno >= stream.end_seqno:
            stream.state = State.ENDED
            return
        stream.state = State.WAITING
        stream.retry_at = retry_at
        self._waiting[stream.vb] = stream


def no_such_stream(vb: int, opaque: int) -> ProtocolError:
    """The error for a frame with this vbucket and opaque."""
    return ProtocolError(f"frame of vbucket {vb} with the opaque {opaque}, which is of no stream of it")
