"""One DCP connection as a state machine without I/O: bytes in, events and bytes out.

First the handshake, one request at a time; then streams, as many at once as the server is asked to open. Each response
is matched to what asked for it by its opaque, and an opaque is used once in the life of a feed, so that nothing of an
earlier stream or connection can be taken for something new.
"""

import struct
from collections.abc import Callable, Iterator
from enum import IntEnum

from channelindex import mcbp
from channelindex.errors import AuthenticationFailed, ConfigInvalid, IndexMismatch, InvariantBroken, ProtocolError
from channelindex.feeds.base import ADVANCED, HISTORY, ROLLBACK, SNAPSHOT, Event, FailoverLog, SourceInfo, vbuuid_at
from channelindex.feeds.dcp import operations
from channelindex.feeds.dcp.auth import Credentials
from channelindex.feeds.dcp.exchange import PASSING, Conversation, Request, complaint
from channelindex.feeds.dcp.handshake import ProducerOptions, open_bucket, open_producer
from channelindex.feeds.dcp.parser import FrameParser
from channelindex.feeds.dcp.streams import Stream, Streams
from channelindex.mcbp import Frame, Op, Status
from channelindex.model import ORIGIN, Checkpoint

_ACK_FRACTION = 5
"""Acknowledge a fifth of the buffer at a time, as the KV docs advise (flow-control.md)."""
_HIGH_SEQNOS_INTERVAL_S = 1.0
_SEQNO_OFFSET: dict[int, int] = {Op.DCP_SEQNO_ADVANCED: 0, Op.DCP_SYSTEM_EVENT: 0, Op.DCP_PREPARE: 0, Op.DCP_ABORT: 8}
"""Frames that move the seqno and carry no document for us, and where in their extras it stands. A prepare is not
visible before its commit, which a consumer that did not ask for sync writes gets as a plain mutation."""

_UNASKED: dict[int, str] = {
    Op.DCP_COMMIT: "a commit without its document",
    Op.DCP_OSO_SNAPSHOT: "an out-of-order snapshot",
}
"""Frames that a server sends only to those who asked for them. To go on after one would lose documents."""

_SNAPSHOT_RANGE = struct.Struct(">QQ")


class StreamEnd(IntEnum):
    """Why the server closed a stream (KV docs, commands/stream-end.md). After all but OK it is asked for again."""

    OK = 0
    LOST_PRIVILEGES = 8


class Session:
    """The protocol on one connection. *streams* and *opaques* belong to the feed and outlive it.

    `outgoing` is what is to be sent; whoever sends it removes it.
    """

    def __init__(
        self,
        bucket: str,
        credentials: Credentials,
        options: ProducerOptions,
        streams: Streams,
        opaques: Iterator[int],
        source_uuid: str | None = None,
    ) -> None:
        self._streams = streams
        self._opaques = opaques
        self._ack_bytes = max(1, options.buffer_bytes // _ACK_FRACTION)
        self._acknowledged_bytes = 0
        self._expected_uuid = source_uuid
        self._parser = FrameParser(streams.seqno_by_opaque, self._on_frame)
        self._answer_by_opaque: dict[int, Callable[[Frame], None]] = {}
        self._now = 0.0
        self._ask_seqnos_at = 0.0
        self.outgoing = bytearray()
        self.source: SourceInfo | None = None
        """What the bucket says of itself, once it has."""
        self.streaming = False
        """Whether the handshake is over."""
        self.high_seqnos: dict[int, int] = {}
        self.ignored_frames = 0
        """Whole frames that nothing was made of: unknown opcodes, and what belongs to streams that are no more."""
        conversation = self._introduce(bucket, credentials, options)
        self._ask(next(conversation), lambda frame: self._continue(conversation, frame))

    # -- what the connection calls

    def receive(self, data: bytes, now: float) -> None:
        """Take in what the server sent.

        Whatever it raises, `take_events` has the events of all that came before; the session is over.

        Raises:
            ProtocolError, SourceUnavailable: connect again.
            AuthenticationFailed, ConfigInvalid, IndexMismatch: that would be in vain.
        """
        self._now = now
        self._parser.feed(data)
        if self.streaming:
            self._request_streams()

    def take_events(self) -> list[Event]:
        """The events since the last call."""
        events = self._parser.events
        self._parser.events = []
        return events

    def acknowledge(self) -> None:
        """Give the server room again for all that was received, once it is enough to be worth a message."""
        taken = self._parser.counted_bytes - self._acknowledged_bytes
        if taken < self._ack_bytes:
            return
        self._acknowledged_bytes += taken
        self._send(Request(Op.DCP_BUFFER_ACK, extras=struct.pack(">I", taken)), 0)

    def tick(self, now: float) -> float:
        """Ask for what is due at *now*; when to call again."""
        if not self.streaming:
            return float("inf")
        self._now = now
        self._request_streams()
        if now >= self._ask_seqnos_at:
            self._ask_seqnos_at = float("inf")  # until answered
            self._ask(operations.active_seqnos(), self._on_high_seqnos)
        return min(self._ask_seqnos_at, self._streams.next_retry())

    # -- requests and their answers

    def _send(self, request: Request, opaque: int) -> None:
        self.outgoing += request.pack(opaque)

    def _ask(self, request: Request, on_answer: Callable[[Frame], None]) -> None:
        opaque = next(self._opaques)
        self._answer_by_opaque[opaque] = on_answer
        self._send(request, opaque)

    def _introduce(self, bucket: str, credentials: Credentials, options: ProducerOptions) -> Conversation[None]:
        self.source = yield from open_bucket(bucket, credentials)
        if self._expected_uuid not in (None, self.source.uuid):
            raise IndexMismatch(
                f"the bucket {bucket!r} of source.url has the UUID {self.source.uuid}, expected {self._expected_uuid}: "
                "it was deleted and created anew; rebuild the index, or set another index.name"
            )
        yield from open_producer(options)

    def _continue(self, conversation: Conversation[None], answer: Frame) -> None:
        try:
            request = conversation.send(answer)
        except StopIteration:
            self.streaming = True
        else:
            self._ask(request, lambda frame: self._continue(conversation, frame))

    def _on_high_seqnos(self, answer: Frame) -> None:
        self._ask_seqnos_at = self._now + _HIGH_SEQNOS_INTERVAL_S
        if answer.status == Status.SUCCESS:
            told = operations.seqnos(answer).items()
            self.high_seqnos = {vb: seqno for vb, seqno in told if vb in self._streams}

    def _request_streams(self) -> None:
        for stream in self._streams.take_due(self._now):
            self._request_stream(stream)

    def _request_stream(self, stream: Stream) -> None:
        self._ask(stream.request(), lambda answer: self._on_stream_answer(stream, answer))

    def _on_stream_answer(self, stream: Stream, answer: Frame) -> None:
        status = answer.status
        if status == Status.SUCCESS:
            failover_log = _failover_log(answer)
            self._streams.accept(stream, answer.opaque, failover_log)
            self._parser.events.append((HISTORY, stream.vb, failover_log))
        elif status == Status.ROLLBACK:
            self._on_rollback(stream, answer)
        elif status in PASSING:
            self._streams.postpone(stream, self._now)
        else:
            raise _stream_refusal(stream, answer)

    def _on_rollback(self, stream: Stream, answer: Frame) -> None:
        seqno = int.from_bytes(answer.value, "big")
        if len(answer.value) != 8 or seqno >= stream.checkpoint.seqno:
            # One that is no step back would be followed for ever.
            raise ProtocolError(f"vbucket {stream.vb}: rollback from {stream.checkpoint.seqno} to {seqno}")
        if seqno == 0:
            self._roll_back(stream, ORIGIN)
            return
        self._ask(Request(Op.DCP_GET_FAILOVER_LOG, vb=stream.vb), lambda log: self._on_failover_log(stream, seqno, log))

    def _on_failover_log(self, stream: Stream, seqno: int, answer: Frame) -> None:
        if answer.status != Status.SUCCESS:
            self._streams.postpone(stream, self._now)
            return
        self._roll_back(stream, Checkpoint(vbuuid_at(_failover_log(answer), seqno), seqno, seqno, seqno))

    def _roll_back(self, stream: Stream, checkpoint: Checkpoint) -> None:
        self._streams.roll_back(stream)
        self._parser.events.append((ROLLBACK, stream.vb, checkpoint))

    # -- frames other than documents

    def _on_frame(self, frame: Frame) -> None:
        if frame.magic == mcbp.RESPONSE:
            on_answer = self._answer_by_opaque.pop(frame.opaque, None)
            if on_answer is not None:
                on_answer(frame)
                return
        elif frame.magic == mcbp.REQUEST:
            if frame.opcode == Op.DCP_NOOP:
                self.outgoing += mcbp.pack_frame(mcbp.RESPONSE, Op.DCP_NOOP, opaque=frame.opaque)
                return
            stream = self._streams.opened(frame.opaque)
            if stream is not None and self._on_stream_frame(stream, frame):
                return
        self.ignored_frames += 1

    def _on_stream_frame(self, stream: Stream, frame: Frame) -> bool:
        """Handle a frame of an open stream; False if it means nothing to us."""
        opcode = frame.opcode
        if opcode == Op.DCP_SNAPSHOT_MARKER:
            stream.snap_start, stream.snap_end = _snapshot(frame)
            self._parser.events.append((SNAPSHOT, stream.vb, stream.snap_start, stream.snap_end))
        elif opcode == Op.DCP_STREAM_END:
            self._on_stream_end(stream, frame)
        elif opcode in _SEQNO_OFFSET:
            seqno = _seqno(frame)
            self._streams.advance(stream, seqno)
            self._parser.events.append((ADVANCED, stream.vb, seqno))
        elif opcode in _UNASKED:
            raise ProtocolError(f"vbucket {stream.vb}: the server sent {_UNASKED[opcode]}, which was not asked for")
        elif Op.DCP_MUTATION <= opcode <= Op.DCP_EXPIRATION:
            raise ProtocolError(f"vbucket {stream.vb}: a document frame without its seqno")
        else:
            return False
        return True

    def _on_stream_end(self, stream: Stream, frame: Frame) -> None:
        reason = int.from_bytes(frame.extras, "big")
        if reason == StreamEnd.LOST_PRIVILEGES:
            raise AuthenticationFailed("source.user lost the privilege to stream the bucket of source.url")
        self._streams.end(stream, self._now, complete=reason == StreamEnd.OK)


def _failover_log(answer: Frame) -> FailoverLog:
    if not answer.value or len(answer.value) % 16:
        raise ProtocolError(f"failover log of {len(answer.value)} bytes")
    return tuple(struct.iter_unpack(">QQ", answer.value))


def _snapshot(frame: Frame) -> tuple[int, int]:
    """The range of a marker: of version 1 in the extras, of versions 2.x in the value."""
    body = frame.extras if len(frame.extras) >= _SNAPSHOT_RANGE.size else frame.value
    if len(body) < _SNAPSHOT_RANGE.size:
        raise ProtocolError(f"snapshot marker of {len(frame.extras)} + {len(frame.value)} bytes")
    start, end = _SNAPSHOT_RANGE.unpack_from(body)
    if start > end:
        raise ProtocolError(f"snapshot from {start} to {end}")
    return start, end


def _seqno(frame: Frame) -> int:
    offset = _SEQNO_OFFSET[frame.opcode]
    if len(frame.extras) < offset + 8:
        raise ProtocolError(f"frame 0x{frame.opcode:02x} with {len(frame.extras)} bytes of extras")
    return int.from_bytes(frame.extras[offset : offset + 8], "big")


def _stream_refusal(stream: Stream, answer: Frame) -> Exception:
    message = f"vbucket {stream.vb}: the server refused to stream from {stream.checkpoint}: {complaint(answer)}"
    match answer.status:
        case Status.EACCESS:
            return AuthenticationFailed(f"{message}; give source.user the privilege to stream this bucket")
        case Status.NOT_SUPPORTED:
            return ConfigInvalid(f"{message}; the server of source.url cannot stream as we need it")
        case Status.ERANGE:
            return InvariantBroken(message)
        case _:
            return ProtocolError(message)
