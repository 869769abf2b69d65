"""The DCP producer of one connection: its streams, which take turns, and its controls. No I/O."""

from collections import deque
from collections.abc import Callable, Collection

from channelindex.mcbp import Status
from devbucket.flow import FlowWindow, NoopKeeper
from devbucket.items import (
    BARE_KEYS,
    COMPRESS,
    DELETE_TIMES,
    EXPIRY_OPCODE,
    INCLUDE_XATTRS,
    NO_VALUE,
    NO_VALUE_KEEP_DATATYPE,
    TAKES_SNAPPY,
)
from devbucket.manifest import KeyFilter
from devbucket.producer_stream import END_CLOSED, ProducerStream, Range
from devbucket.replies import Refused
from devbucket.vbucket import VBucket

PRODUCER = 0x01
MODE_FLAGS = INCLUDE_XATTRS | NO_VALUE | DELETE_TIMES | NO_VALUE_KEEP_DATATYPE

WITHOUT_EFFECT = frozenset({"set_priority", "supports_cursor_dropping_vulcan", "supports_hifi_MFU"})
"""Controls that are accepted and change nothing that a client could see here."""


class Producer:
    """All streams of one connection. Streams that have something to send wait for their turn in a queue."""

    def __init__(self, name: str, mode: int, idle_timeout_s: float, now: float) -> None:
        self.name = name
        self.flow = FlowWindow()
        self.noop = NoopKeeper(idle_timeout_s, now)
        self.on_ready: Callable[[], None] = lambda: None
        self.knows_purges = False  # whether markers of disk snapshots carry the purge seqno
        self._mode = mode
        self._end_on_close = False
        self._streams: dict[int, ProducerStream] = {}
        self._queue: deque[ProducerStream] = deque()

    @property
    def lacks_noop(self) -> bool:
        """Return whether streams are refused: with xattrs, a client must let us see that it lives."""
        return bool(self._mode & INCLUDE_XATTRS) and not self.noop.enabled

    @property
    def n_streams(self) -> int:
        """Return how many streams are open."""
        return len(self._streams)

    def control(self, name: str, value: str, now: float) -> None:
        """Set a control.

        Raises:
            Refused: unknown control or value.
        """
        if name == "connection_buffer_size":
            self.flow.buffer_bytes = _number(value)
        elif name == "enable_noop":
            self.noop.enable(now, on=_switch(value))
        elif name == "set_noop_interval":
            self.noop.set_interval(_number(value))
        elif name == "send_stream_end_on_client_close_stream":
            self._end_on_close = _switch(value)
        elif name == "enable_expiry_opcode":
            # Without delete times, asked for at DCP_OPEN, it has no effect: couchbase/kv_engine MB-38390, which
            # tests/testapp_cluster/basic_tests.cc holds on to (read), against what commands/control.md says.
            self._mode = self._mode & ~EXPIRY_OPCODE | (EXPIRY_OPCODE if _switch(value) else 0)
        elif name == "force_value_compression" and self._mode & TAKES_SNAPPY:
            self._mode = self._mode & ~COMPRESS | (COMPRESS if _switch(value) else 0)
        elif name == "max_marker_version":
            self.knows_purges = _one_of(value, ("2.0", "2.2")) == "2.2"
        elif name == "stream_buffer_size":
            raise Refused(Status.NOT_SUPPORTED)
        elif name not in WITHOUT_EFFECT:
            raise Refused(Status.EINVAL)

    def has_stream(self, vb: int) -> bool:
        """Return whether a stream of *vb* is open."""
        stream = self._streams.get(vb)
        return stream is not None and not stream.ended

    def add_stream(
        self, vbucket: VBucket, opaque: int, requested: Range, *, from_disk: bool, key_filter: KeyFilter | None
    ) -> None:
        """Open a stream, of some keys or of all."""
        assert not self.has_stream(vbucket.vb), "a vbucket has one stream"
        stream = ProducerStream(
            vbucket,
            opaque,
            requested,
            self._mode,
            self._ready,
            from_disk=from_disk,
            key_filter=key_filter,
            with_advances=not self._mode & BARE_KEYS,
            with_purges=self.knows_purges,
        )
        self._streams[vbucket.vb] = stream
        self._ready(stream)

    def close_stream(self, vb: int) -> None:
        """Close a stream at the client's wish; only who asked for it is sent a STREAM_END.

        Raises:
            Refused: there is no such stream.
        """
        if not self.has_stream(vb):
            raise Refused(Status.KEY_ENOENT)
        stream = self._streams.pop(vb)
        stream.release()
        if self._end_on_close:
            stream.finish(END_CLOSED)
        else:
            stream.done = True

    def end_stream(self, vb: int, reason: int) -> bool:
        """End a stream for a reason of the server's; whether there was one."""
        if not self.has_stream(vb):
            return False
        self._streams[vb].finish(reason)
        return True

    def check(self) -> None:
        """Assert what holds after every frame."""
        assert all(stream.vbucket.vb == vb for vb, stream in self._streams.items())
        assert all(stream.queued for stream in self._queue), "who waits for its turn knows it"
        assert len(set(map(id, self._queue))) == len(self._queue), "a stream waits once"
        assert self.flow.outstanding >= 0
        for stream in self._streams.values():
            assert stream.queued or not stream.has_more, "who has something to send waits for its turn"
            stream.check()

    def close(self) -> None:
        """Forget all streams: the connection is gone."""
        for stream in self._streams.values():
            stream.release()
        self._streams.clear()
        self._queue.clear()

    def take(self, max_bytes: int) -> bytes:
        """Return messages of about *max_bytes*, as flow control allows, or nothing; the streams take turns."""
        assert max_bytes > 0
        out: list[bytes] = []
        size = 0
        while self._queue and size < max_bytes and (room := self.flow.room()) > 0:
            stream = self._queue.popleft()
            taken = stream.take(out, room) if not stream.done else 0
            self.flow.sent(taken)
            size += taken
            self._requeue(stream)
        return b"".join(out)

    def _requeue(self, stream: ProducerStream) -> None:
        assert stream.queued, "it had its turn"
        if stream.has_more:
            self._queue.append(stream)
            return
        stream.queued = False
        if stream.done and self._streams.get(stream.vbucket.vb) is stream:
            del self._streams[stream.vbucket.vb]

    def _ready(self, stream: ProducerStream) -> None:
        if not stream.queued:
            stream.queued = True
            self._queue.append(stream)
        self.on_ready()


def _switch(value: str) -> bool:
    if value not in ("true", "false"):
        raise Refused(Status.EINVAL)
    return value == "true"


def _one_of(value: str, allowed: Collection[str]) -> str:
    if value not in allowed:
        raise Refused(Status.EINVAL)
    return value


def _number(value: str) -> int:
    if not (value.isascii() and value.isdigit()):
        raise Refused(Status.EINVAL)
    return int(value)
