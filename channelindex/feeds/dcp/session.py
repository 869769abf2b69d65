"""One DCP connection as a state machine without I/O: bytes in, events and bytes out.

First the handshake, one request at a time; then streams, as many at once as the server is asked to open. Each response
is matched to what asked for it by its opaque. A stream's opaque is used once in the life of a feed, so that nothing of
an earlier stream or connection can be taken for something new; all other requests number anew on each connection, with
the highest bit set.
"""

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from channelindex import logs, mcbp
from channelindex.errors import ProtocolError
from channelindex.feeds.base import ADVANCED, EXPIRATION, HISTORY, ROLLBACK, SNAPSHOT, Events, vbuuid_at
from channelindex.feeds.dcp import messages, operations
from channelindex.feeds.dcp.auth import Credentials
from channelindex.feeds.dcp.connstr import SourceAddress
from channelindex.feeds.dcp.exchange import RETRYABLE_STATUSES, Conversation, Request, error_text, opcode_name
from channelindex.feeds.dcp.handshake import FEED_FEATURES, ProducerOptions, open_bucket, open_producer
from channelindex.feeds.dcp.keyspace import NO_COLLECTIONS, CollectionMissing, find_keyspace
from channelindex.feeds.dcp.messages import NeedsBody, StreamEnd
from channelindex.feeds.dcp.parser import FrameParser, Unfinished
from channelindex.feeds.dcp.streams import Stream, Streams
from channelindex.mcbp import Feature, Frame, Op, Status
from channelindex.model import ORIGIN, Checkpoint

_ACK_FRACTION = 5
"""Acknowledge a fifth of the buffer at a time, as the KV docs advise (flow-control.md)."""
_HIGH_SEQNOS_INTERVAL_S = 1.0
_NO_STREAM = 1 << 31
"""Set in the opaques of requests that open no stream. These come round again, after years."""
_COLLECTION_UNKNOWN = (Status.UNKNOWN_COLLECTION, Status.UNKNOWN_SCOPE)
"""A node that has streams open learns of a collection vbucket by vbucket; where it has none, the numbers may be old."""

_log = logs.get("feed")


@dataclass(frozen=True)
class SessionOptions:
    """Options that all sessions of a feed share. *needs_body* is for a feed without bodies."""

    address: SourceAddress
    credentials: Credentials
    producer: ProducerOptions
    needs_body: NeedsBody | None = None


class Session:
    """The protocol on one connection to one node. *streams* are the node's, *opaques* the feed's; both outlive it.

    *on_config* is called with every cluster configuration that the node sends. `outgoing` is what is to be sent;
    whoever sends it removes it.
    """

    def __init__(
        self, options: SessionOptions, streams: Streams, opaques: Iterator[int], on_config: Callable[[bytes], None]
    ) -> None:
        self._options = options
        self._streams = streams
        self._opaques = opaques
        self._on_config = on_config
        self._ack_bytes = max(1, options.producer.buffer_bytes // _ACK_FRACTION)
        self._acknowledged_bytes = 0
        self._parser = FrameParser(streams, self._on_frame)
        self._keyspace = NO_COLLECTIONS
        self._has_purge_seqnos = False
        self._answer_by_opaque: dict[int, Callable[[Frame], None]] = {}
        self._ignored_opcodes: set[tuple[int, int]] = set()
        self._n_asked = 0
        self._now = 0.0
        self._ask_seqnos_at = 0.0
        self.outgoing = bytearray()
        self.streaming = False
        """True when the handshake is over."""
        self.map_doubtful = False
        """True if the node has shown that our cluster map is outdated; the feed clears it."""
        self.high_seqnos: dict[int, int] = {}
        """Reported by the node last, of the vbuckets here; the feed clears it."""
        self.ignored_frames = 0
        """Whole frames that nothing was made of: unknown opcodes, and what belongs to streams that are no more."""
        conversation = self._introduce()
        self._ask(next(conversation), lambda frame: self._continue(conversation, frame))

    # -- what the connection calls

    def receive(self, data: bytes, now: float) -> None:
        """Take in what the server sent.

        Whatever it raises, `take_events` has the events of all that came before; the session is over.

        Raises:
            ProtocolError, SourceUnavailable: connect again.
            BodiesNeeded: connect again, with bodies.
            AuthenticationFailed, ConfigInvalid, IndexMismatch: that would be in vain.
        """
        self._now = now
        self._parser.feed(data)
        if self.streaming:
            self._request_streams()

    @property
    def unfinished(self) -> Unfinished | None:
        """The frame that what was received ends in the middle of."""
        return self._parser.unfinished

    def take_events(self) -> Events:
        """The events since the last call."""
        events = self._parser.take_events()
        if self._keyspace.several:
            qualified = self._keyspace.qualified
            return [
                (*event[:3], qualified(event[3]), *event[4:]) if event[0] <= EXPIRATION else event for event in events
            ]
        return events

    def acknowledge(self) -> None:
        """Give the server room again for all that was received, once it is enough to be worth a message."""
        taken = self._parser.counted_bytes - self._acknowledged_bytes
        assert taken >= 0, "room is given again for what was received"
        if taken < self._ack_bytes:
            return
        self._acknowledged_bytes += taken
        self._send(Request(Op.DCP_BUFFER_ACK, extras=struct.pack(">I", taken)), 0)

    def close_streams(self, vbuckets: Iterable[int]) -> None:
        """Have the server close these streams; whatever it still sends of them belongs to nobody."""
        for vb in vbuckets:
            self._ask(Request(Op.DCP_CLOSE_STREAM, vb=vb), lambda _: None)

    def tick(self, now: float) -> float:
        """Ask for what is due at *now*; when to call again."""
        if not self.streaming:
            return float("inf")
        self._now = now
        self._request_streams()
        if now >= self._ask_seqnos_at:
            self._ask_seqnos_at = float("inf")  # until answered
            self._ask(operations.active_seqnos(self._keyspace.only_id), self._on_high_seqnos)
        return min(self._ask_seqnos_at, self._streams.next_retry())

    def ask_config(self) -> None:
        """Ask for the cluster configuration; it goes to *on_config*. Only while `streaming`."""
        assert self.streaming, "the handshake has one request at a time"
        self._ask(Request(Op.GET_CLUSTER_CONFIG), self._on_config_answer)

    def ask(self, request: Request, on_answer: Callable[[Frame], None]) -> None:
        """Send *request*; its answer goes to *on_answer*, unless the session is over first. Only while `streaming`."""
        assert self.streaming, "the handshake has one request at a time"
        self._ask(request, on_answer)

    # -- requests and their answers

    def _send(self, request: Request, opaque: int) -> None:
        self.outgoing += request.pack(opaque)

    def _ask(self, request: Request, on_answer: Callable[[Frame], None], opaque: int | None = None) -> None:
        if opaque is None:
            self._n_asked += 1
            opaque = _NO_STREAM | self._n_asked % _NO_STREAM
        assert opaque not in self._answer_by_opaque, "whose answer would it be?"
        self._answer_by_opaque[opaque] = on_answer
        self._send(request, opaque)

    def _introduce(self) -> Conversation[None]:
        options = self._options
        features = (*FEED_FEATURES, Feature.SNAPPY) if options.producer.snappy else FEED_FEATURES
        greeting = yield from open_bucket(options.address, options.credentials, features)
        self._on_config(greeting.config)
        collections = options.address.collections
        self._keyspace = yield from find_keyspace(collections, granted=Feature.COLLECTIONS in greeting.features)
        self._parser.expect(len(self._keyspace.prefix), None if options.producer.bodies else options.needs_body)
        self._has_purge_seqnos = yield from open_producer(options.producer)

    def _continue(self, conversation: Conversation[None], answer: Frame) -> None:
        try:
            request = conversation.send(answer)
        except StopIteration:
            self.streaming = True
            assert not self._streams.open_by_opaque, "streams are asked for after the handshake"
        else:
            self._ask(request, lambda frame: self._continue(conversation, frame))

    def _on_config_answer(self, answer: Frame) -> None:
        if answer.status == Status.SUCCESS:
            self._on_config(answer.value)

    def _on_high_seqnos(self, answer: Frame) -> None:
        self._ask_seqnos_at = self._now + _HIGH_SEQNOS_INTERVAL_S
        if answer.status == Status.SUCCESS:
            reported = operations.seqnos(answer).items()
            self.high_seqnos = {vb: seqno for vb, seqno in reported if vb in self._streams}

    def _request_streams(self) -> None:
        for stream in self._streams.take_due(self._now):
            self._request_stream(stream)

    def _request_stream(self, stream: Stream) -> None:
        assert stream.is_subscribed, "what was dropped is not requested"
        request = stream.request(self._keyspace.stream_filter, with_purge_seqno=self._has_purge_seqnos)
        self._ask(request, lambda answer: self._on_stream_answer(stream, answer), next(self._opaques))

    def _on_stream_answer(self, stream: Stream, answer: Frame) -> None:
        status = answer.status
        if not stream.is_subscribed:
            if status == Status.SUCCESS:
                self._streams.leave(stream, opened_as=answer.opaque)
                self.close_streams([stream.vb])
            else:
                self._streams.leave(stream)
        elif status == Status.SUCCESS:
            failover_log = messages.failover_log(answer)
            self._streams.accept(stream, answer.opaque, failover_log)
            self._parser.events.append((HISTORY, stream.vb, failover_log))
        elif status == Status.ROLLBACK:
            self._on_rollback(stream, answer)
        elif status in _COLLECTION_UNKNOWN and not self._streams.open_by_opaque:
            raise CollectionMissing(self._missing_text("the server does not know what it names"))
        elif status in RETRYABLE_STATUSES:
            self._streams.postpone(stream, self._now)
            self._on_refusal(stream, answer)
        else:
            raise messages.stream_refusal(stream.vb, stream.checkpoint, answer)

    def _on_refusal(self, stream: Stream, answer: Frame) -> None:
        if answer.status == Status.NOT_MY_VBUCKET:
            self.map_doubtful = True
            if answer.value:
                self._on_config(answer.value)
        else:
            _log.warning("feed.stream_refused", vb=stream.vb, msg=error_text(answer))

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
        if not stream.is_subscribed:
            self._streams.leave(stream)
            return
        if answer.status != Status.SUCCESS:
            self._streams.postpone(stream, self._now)
            return
        self._roll_back(stream, Checkpoint(vbuuid_at(messages.failover_log(answer), seqno), seqno, seqno, seqno))

    def _roll_back(self, stream: Stream, checkpoint: Checkpoint) -> None:
        assert checkpoint.seqno < stream.checkpoint.seqno, "a rollback is a step back"
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
                self.outgoing += mcbp.pack_response(Op.DCP_NOOP, opaque=frame.opaque)
                return
            if self._on_message(frame):
                return
        elif frame.opcode == mcbp.CLUSTERMAP_CHANGED and frame.magic == mcbp.SERVER_REQUEST:
            self._on_pushed_config(frame)
            return
        if frame.magic != mcbp.REQUEST and frame.opcode in messages.OF_STREAMS:
            raise ProtocolError(f"{opcode_name(frame.opcode)} with the magic 0x{frame.magic:02x}")
        self._ignore(frame)

    def _on_message(self, frame: Frame) -> bool:
        """Handle what the server sends unasked; False if it means nothing to us."""
        if frame.opcode not in messages.FROM_SERVER:
            raise ProtocolError(f"a message {opcode_name(frame.opcode)}, which no server sends")
        if frame.opcode not in messages.OF_STREAMS:
            return False
        stream = self._streams.opened(frame.opaque, frame.vbucket)
        if stream is None:
            return False
        self._on_stream_frame(stream, frame)
        return True

    def _on_pushed_config(self, frame: Frame) -> None:
        if frame.key == self._options.address.bucket.encode() and frame.value:
            self._on_config(frame.value)
        else:
            self.map_doubtful = True  # the node announced a new one, without its content

    def _ignore(self, frame: Frame) -> None:
        self.ignored_frames += 1
        kind = frame.magic, frame.opcode
        if kind not in self._ignored_opcodes:
            self._ignored_opcodes.add(kind)
            _log.debug("feed.frame_ignored", magic=hex(frame.magic), opcode=opcode_name(frame.opcode), vb=frame.vbucket)

    def _on_stream_frame(self, stream: Stream, frame: Frame) -> None:
        opcode = frame.opcode
        if opcode == Op.DCP_SNAPSHOT_MARKER:
            self._parser.events.append((SNAPSHOT, stream.vb, *stream.enter_snapshot(frame)))
        elif opcode == Op.DCP_STREAM_END:
            self._on_stream_end(stream, messages.stream_end_reason(frame))
        elif opcode in messages.SEQNO_OFFSET:
            seqno = messages.seqno_of(frame)
            self._streams.advance(stream, seqno)
            self._parser.events.append((ADVANCED, stream.vb, seqno))
            if opcode == Op.DCP_SYSTEM_EVENT:
                self._keyspace.learn(frame)
        elif opcode in messages.UNASKED:
            raise ProtocolError(f"vbucket {stream.vb}: the server sent {messages.UNASKED[opcode]}, never asked for")
        else:
            raise ProtocolError(f"vbucket {stream.vb}: a document frame without its seqno")

    def _missing_text(self, what: str) -> str:
        names = ",".join(self._options.address.collections)
        return f"source.collections = {names!r}: {what}; it is looked up until it is there again"

    def _on_stream_end(self, stream: Stream, reason: int) -> None:
        if reason == StreamEnd.FILTER_EMPTY:
            raise CollectionMissing(self._missing_text("what it names was dropped"))
        complete = reason == StreamEnd.OK
        self._streams.end(stream, self._now, complete=complete)
        if reason == StreamEnd.STATE_CHANGED:
            self.map_doubtful = True
        if not complete:
            level = _log.info if reason == StreamEnd.STATE_CHANGED else _log.warning
            level("feed.stream_ended", vb=stream.vb, seqno=stream.checkpoint.seqno, reason=messages.reason_name(reason))
