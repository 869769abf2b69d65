"""One client connection on asyncio: frames in, replies and stream messages out."""

import asyncio
from typing import cast

from channelindex import mcbp
from channelindex.errors import ProtocolError
from channelindex.mcbp import Feature
from devbucket.client_session import ClientSession, NodeContext
from devbucket.dispatch import answer
from devbucket.replies import HangUp
from devbucket.wire import Wire

CHUNK_BYTES = 256 * 1024
"""Stream messages per write: enough that the cost of a system call is spread, little enough that others get a turn."""

MAX_UNSENT_BYTES = 1024 * 1024
"""Bytes that a connection may hold beyond the kernel's; then streams pause until the client reads."""

CLUSTER_MAP_CHANGED = 0x01
"""A server's requests have opcodes of their own (docs/Duplex.md)."""


class ClientConnection(asyncio.Protocol):
    """Reads requests, answers them in order, and sends stream messages whenever the client takes them."""

    def __init__(self, node: NodeContext, connections: set["ClientConnection"]) -> None:
        self.session = ClientSession(node, self.abort)
        self._node = node
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._paused = False
        self._stalled = False
        self._pump_scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport
        self.wire: Wire

    @property
    def name(self) -> str:
        """Return the name that the client gave itself in DCP_OPEN; empty for another kind of client."""
        return self.session.producer.name if self.session.producer is not None else ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=MAX_UNSENT_BYTES)
        self.wire = Wire(self._transport, self.pump_soon)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - how it ended makes no difference
        """Release everything."""
        self._connections.discard(self)
        self.wire.stop()
        self._node.forget(self.session)
        if self.session.producer is not None:
            self.session.producer.close()
        if self._timer is not None:
            self._timer.cancel()

    def pause_writing(self) -> None:
        """Stop streaming, or answering: the client does not read. A DCP client must still be heard: it is alive."""
        self._paused = True
        if self.session.producer is None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Go on: the client reads again."""
        self._paused = False
        if not self.wire.half_open:
            self._transport.resume_reading()
        self.pump_soon()

    def abort(self) -> None:
        """Cut the connection; what was not sent yet is lost."""
        self._transport.abort()

    def describe(self) -> dict[str, str | int]:
        """Return what a person wants to know of it."""
        host, port = self._transport.get_extra_info("peername")[:2]
        producer = self.session.producer
        return {
            "peer": f"{host}:{port}",
            "name": self.name,
            "user": self.session.account.name if self.session.account is not None else "",
            "streams": producer.n_streams if producer is not None else 0,
            "unacknowledged_bytes": producer.flow.outstanding if producer is not None else 0,
        }

    def stall(self, *, on: bool) -> None:
        """Send no stream messages, or go on."""
        self._stalled = on
        self.pump_soon()

    def end_stream(self, vb: int, reason: int) -> bool:
        """End the stream of a vbucket; whether there was one."""
        return self.session.producer is not None and self.session.producer.end_stream(vb, reason)

    def data_received(self, data: bytes) -> None:
        """Answer all whole frames; a client that breaks the protocol is hung up on."""
        self._buffer += data
        replies: list[bytes] = []
        try:
            self._take_frames(replies)
        except (HangUp, ProtocolError):
            self.wire.write(b"".join(replies))
            self.wire.close()
            return
        self.wire.write(b"".join(replies))
        self._tend_producer()

    def push_map(self) -> None:
        """Send the bucket's map to a client that asked for new ones."""
        needed = {Feature.DUPLEX, Feature.CLUSTERMAP_NOTIFICATION}
        bucket = self.session.selected
        if bucket is None or not needed <= self.session.features:
            return
        push = mcbp.pack_request(
            CLUSTER_MAP_CHANGED,
            magic=mcbp.SERVER_REQUEST,
            datatype=self.session.json_datatype,
            extras=bucket.placement.revision.to_bytes(4, "big"),
            key=bucket.name.encode(),
            value=self.session.map_json(),
        )
        self.wire.write(push)

    def pump_soon(self) -> None:
        """Send stream messages when the loop comes round; calls until then are one."""
        if not self._pump_scheduled:
            self._pump_scheduled = True
            self._loop.call_soon(self._pump)

    def _take_frames(self, replies: list[bytes]) -> None:
        offset = 0
        while (taken := mcbp.take_frame(self._buffer, offset)) is not None:
            frame, offset = taken
            answer(self.session, frame, replies)
        del self._buffer[:offset]

    def _tend_producer(self) -> None:
        producer = self.session.producer
        if producer is not None:
            producer.on_ready = self.pump_soon
            producer.noop.heard(self._loop.time())
            self._arm_timer()
            self.pump_soon()

    def _pump(self) -> None:
        """Send one chunk, and come back for the next: other connections have their turn in between."""
        self._pump_scheduled = False
        producer = self.session.producer
        if producer is None or self._paused or self._stalled or self._clogged:
            return
        if chunk := producer.take(CHUNK_BYTES):
            self.wire.write_messages(chunk)
            self.pump_soon()

    @property
    def _clogged(self) -> bool:
        return self._transport.is_closing() or self.wire.half_open or self.wire.waiting_bytes > MAX_UNSENT_BYTES

    def _arm_timer(self) -> None:
        """Have `_tick` called when the no-op keeper has something to do. A timer that comes early does no harm."""
        deadline = self.session.producer.noop.deadline() if self.session.producer else None
        if deadline is None or (self._timer is not None and self._timer.when() <= deadline):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(deadline, self._tick)

    def _tick(self) -> None:
        assert self._timer is not None, "it was armed"
        self._timer = None
        if self.session.producer is None or self.wire.half_open:
            return
        try:
            self.wire.write(self.session.producer.noop.tick(self._loop.time()))
        except HangUp:
            self.abort()
            return
        self._arm_timer()
