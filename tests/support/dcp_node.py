"""A node on loopback that does what the test says, in the test's own thread, and a loop that runs it with a feed."""

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from channelindex.feeds.base import Event
from channelindex.feeds.dcp.auth import Credentials
from channelindex.feeds.dcp.client import DcpFeed, FeedOptions
from channelindex.feeds.dcp.connstr import Endpoint, SourceAddress
from channelindex.mcbp import REQUEST, Frame, Op, take_frame
from tests.support.dcp_replay import answer, cluster_config, handshake_answer
from tests.support.dcp_wire import failover_log

DEADLINE_S = 120.0
LOG = failover_log((0xABC, 0))


class Node:
    """Listens, accepts one connection at a time, and answers each request with what *respond* makes of it.

    Requests that *respond* has no answer for (None) are kept in `asked`; the handshake answers itself.
    """

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.endpoint = Endpoint("127.0.0.1", self._listener.getsockname()[1])
        self._peer: socket.socket | None = None
        self._input = bytearray()
        self.config = cluster_config(self.endpoint.port)
        self.n_connections = 0
        self.asked: list[Frame] = []
        self.replies: list[Frame] = []
        self.features = b""
        """What a HELLO is granted."""
        self.respond: Callable[[Frame], bytes | None] = lambda frame: None

    @property
    def address(self) -> SourceAddress:
        return SourceAddress((self.endpoint,), "default")

    def turn(self) -> None:
        """Accept, read, answer: what there is now."""
        if self._peer is None:
            try:
                self._peer, _ = self._listener.accept()
            except BlockingIOError:
                return
            self._peer.setblocking(False)
            self._input.clear()
            self.n_connections += 1
        try:
            data = self._peer.recv(1 << 20)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            self.hang_up()
            return
        self._input += data
        while (taken := take_frame(self._input)) is not None:
            frame, end = taken
            del self._input[:end]
            self._handle(frame)

    def _handle(self, frame: Frame) -> None:
        if frame.magic != REQUEST:
            self.replies.append(frame)
            return
        reply = self.respond(frame)
        if reply is None and frame.opcode in (0x1F, 0x89, 0xB5, 0x50, 0x5E):
            reply = handshake_answer(frame, self.config, self.features)
        if reply is None:
            self.asked.append(frame)
        else:
            self.send(reply)

    def send(self, data: bytes) -> None:
        if self._peer is not None:
            self._peer.setblocking(True)
            self._peer.sendall(data)
            self._peer.setblocking(False)

    def hang_up(self) -> None:
        if self._peer is not None:
            self._peer.close()
            self._peer = None

    def take(self, opcode: int) -> list[Frame]:
        """The requests with *opcode* that were kept; they are taken out."""
        taken = [frame for frame in self.asked if frame.opcode == opcode]
        self.asked = [frame for frame in self.asked if frame.opcode != opcode]
        return taken

    def close(self) -> None:
        self.hang_up()
        self._listener.close()


class Clock:
    """A monotonic clock that the test moves on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Rig:
    """A feed, its nodes and a clock."""

    def __init__(self, nodes: Sequence[Node], feed: DcpFeed, clock: Clock) -> None:
        self.nodes = nodes
        self.node = nodes[0]
        self.feed = feed
        self.clock = clock
        self.events: list[Event] = []
        self.opened: list[Frame] = []
        """The requests of streams that the test has opened and wants to go on with."""

    def turn(self) -> None:
        self.feed.tick(self.clock())
        self.events += self.feed.read(1 << 20)
        self.feed._cluster.check()
        for node in self.nodes:
            node.turn()

    def until(self, done: Callable[[], object], step_s: float = 0.0) -> None:
        """Let both run until *done*; each turn moves the clock by *step_s*."""
        deadline = time.monotonic() + DEADLINE_S
        while not done():
            assert time.monotonic() < deadline, f"last error: {self.feed.last_error}, events: {self.events}"
            self.turn()
            self.clock.now += step_s

    def asked(self, opcode: int, number: int = 0) -> Frame:
        """Wait for the next request with *opcode* at the node of that number."""
        node = self.nodes[number]
        self.until(lambda: any(frame.opcode == opcode for frame in node.asked), step_s=0.05)
        return node.take(opcode)[-1]

    def accept(self, number: int = 0, log: bytes = LOG) -> Frame:
        """Wait for the next stream request at that node, and open the stream."""
        request = self.asked(Op.DCP_STREAM_REQ, number)
        self.nodes[number].send(answer(request, value=log))
        return request

    def tell(self, chains: Sequence[Sequence[int]], rev: int) -> None:
        """What the map is from now on, for who asks."""
        ports = [node.endpoint.port for node in self.nodes]
        for number, node in enumerate(self.nodes):
            node.config = cluster_config(*ports, chains=chains, here=number, rev=rev)


@contextmanager
def rig(
    end_seqnos: dict[int, int] | None = None,
    n_nodes: int = 1,
    chains: Sequence[Sequence[int]] = ((0,),) * 4,
    address: SourceAddress | None = None,
    **options: object,
) -> Iterator[Rig]:
    """*chains* are the first map's; *options* are those of the feed."""
    nodes, clock = [Node() for _ in range(n_nodes)], Clock()
    feed = DcpFeed(
        address or nodes[0].address,
        Credentials(),
        name="test",
        end_seqnos=end_seqnos,
        options=FeedOptions(**options),  # type: ignore[arg-type]
        clock=clock,
    )
    made = Rig(nodes, feed, clock)
    made.tell(chains, 1)
    try:
        yield made
    finally:
        feed.close()
        for node in nodes:
            node.close()
