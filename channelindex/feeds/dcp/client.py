"""The feed of a bucket: one connection to each node that has vbuckets of ours, and another one whenever that is lost.

Nothing is lost or repeated by a reconnect or a move: the streams know, per vbucket, what was handed out last, and
what a connection received before it broke is handed out first.
"""

import itertools
import os
import secrets
import select
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import NamedTuple

from channelindex import logs
from channelindex.errors import AuthenticationFailed, ChannelIndexError, ConfigInvalid, ProtocolError, SourceUnavailable
from channelindex.feeds.base import Event, Events
from channelindex.feeds.dcp import messages
from channelindex.feeds.dcp.auth import Credentials
from channelindex.feeds.dcp.cluster import Cluster
from channelindex.feeds.dcp.connection import NOOP_INTERVAL_S, Connection
from channelindex.feeds.dcp.connstr import Endpoint, SourceAddress
from channelindex.feeds.dcp.handshake import ProducerOptions
from channelindex.feeds.dcp.messages import BodiesNeeded, NeedsBody
from channelindex.feeds.dcp.node import Node
from channelindex.feeds.dcp.persistence import PersistenceGate
from channelindex.feeds.dcp.resolver import Resolver
from channelindex.feeds.dcp.session import Session, SessionOptions
from channelindex.feeds.dcp.streams import Streams
from channelindex.mcbp import Frame, Status
from channelindex.model import Checkpoint

DEFAULT_BUFFER_BYTES = 10 * 1024 * 1024
"""Bytes that the servers may send unacknowledged: keeps them busy, and bounds a feed worker's memory."""
_LEAST_BUFFER_BYTES = 512 * 1024
"""Of one connection, however many there are: less would make a node wait for each acknowledgement."""
_LEAST_READ_BYTES = 64 * 1024
AUTHENTICATION_GRACE_S = 60.0
"""Time for which a feed that has streamed tolerates refusals: a node that joins learns of users after vbuckets."""
_OBSERVE_S = 0.25
"""Interval of requests for what is persisted, while a change waits for it."""
_NAME_CHARS = 100
"""Of the caller's part of a connection's name; servers take 200 bytes altogether."""

_log = logs.get("feed")


class FeedOptions(NamedTuple):
    """Options of a feed. With *bodies* False documents come without body; *needs_body* picks those that need theirs.

    Then the feed goes over to bodies, from such a document on. Without *needs_body* it never does. *snappy*: whether
    the servers may send values compressed, as they keep them. *replicated_only*: hold back what is not on the disks
    of all copies yet, see `persistence`. *buffer_bytes* is shared by all connections.
    """

    bodies: bool = True
    needs_body: NeedsBody | None = None
    snappy: bool = True
    replicated_only: bool = False
    buffer_bytes: int = DEFAULT_BUFFER_BYTES


class DcpFeed:
    """A `feeds.base.Feed` of a bucket. *name* appears in the servers' statistics; it need not be unique.

    With *end_seqnos* (by vbucket) the stream of such a vbucket ends as soon as everything up to that seqno has come.
    The server completes the snapshot, so more may come. *source_uuid* is the UUID of the bucket to expect; without it,
    that of the bucket which the first connection finds. *clock* is monotonic, the same that `tick` is given.

    Nothing blocks, but for a second when a host's name is looked up and the name server is slow.
    """

    def __init__(
        self,
        address: SourceAddress,
        credentials: Credentials,
        *,
        name: str,
        source_uuid: str | None = None,
        end_seqnos: Mapping[int, int] | None = None,
        options: FeedOptions = FeedOptions(),  # noqa: B008 it is immutable
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address = address
        self._credentials = credentials
        self._end_seqnos = end_seqnos
        self._options = options
        self._clock = clock
        # A second connection of the same name would make the server close the first.
        self._name = f"channelindex:{name[:_NAME_CHARS]}:{os.getpid():x}-{secrets.token_hex(4)}"
        self._bodies = options.bodies
        self._incarnation = 0
        self._opaques = itertools.count(1)
        self._epoll = select.epoll()
        self._resolver = Resolver()
        self._cluster = Cluster(address, self._connect, source_uuid, with_copies=options.replicated_only)
        self._gate = PersistenceGate() if options.replicated_only else None
        self._observe_at = 0.0
        self._started = False
        self._read_bytes = 0
        self._has_streamed = False
        self._high_seqnos: dict[int, int] = {}
        self._connected: list[Node] = []
        """The nodes to which there is a connection, or was when the last one was made."""

    def start(self, checkpoints: Mapping[int, Checkpoint]) -> None:
        """Begin to stream each vbucket from its checkpoint; `read` and `tick` connect and reconnect."""
        assert all(vb >= 0 for vb in checkpoints)
        self._cluster.take(Streams(checkpoints, self._end_seqnos))
        if self._gate is not None:
            self._gate.begin(checkpoints)
        self._started = True

    def add(self, checkpoints: Mapping[int, Checkpoint]) -> None:
        """Stream these vbuckets too, each from its checkpoint, beside those that go on."""
        assert self._started, "the first are those of `start`"
        self._cluster.add(checkpoints)
        if self._gate is not None:
            self._gate.begin(checkpoints)

    def drop(self, vbuckets: Collection[int]) -> None:
        """Stream these vbuckets no more. No later `read` gives events of them."""
        self._cluster.drop(vbuckets)
        for vb in vbuckets:
            self._high_seqnos.pop(vb, None)
        if self._gate is not None:
            self._gate.forget(vbuckets)

    def fileno(self) -> int:
        """An epoll descriptor, readable whenever `read` has something to do."""
        return self._epoll.fileno()

    @property
    def last_error(self) -> ChannelIndexError | None:
        """Why a connection was lost or cannot be made; None once all nodes that matter stream."""
        return self._cluster.last_error

    def read(self, max_bytes: int) -> Events:
        """The events that have arrived, from about *max_bytes* of input; empty when there is nothing now.

        Raises:
            AuthenticationFailed: the source refuses our credentials, or its certificate is not trusted.
            ConfigInvalid: the bucket cannot be streamed as configured.
            IndexMismatch: the bucket is not the one that was expected.
        """
        if not self._started:
            return []
        self._read_bytes = 0
        ready = {fd for fd, _ in self._epoll.poll(0)}
        nodes = [node for node in self._connected if node.connection and node.connection.fileno() in ready]
        portions: list[Events] = []
        for node in nodes:
            self._receive(node, max(_LEAST_READ_BYTES, max_bytes // len(nodes)), portions)
        events = _joined(portions)
        return events if self._gate is None else self._released(self._gate, events)

    def read_bytes(self) -> int:
        """The bytes of input that the last `read` took; those of a connection that it lost are not counted."""
        return self._read_bytes

    def _released(self, gate: PersistenceGate, events: Iterable[Event]) -> Events:
        gate.add(events)
        self._cluster.resume(gate.unseen_rollbacks)
        gate.unseen_rollbacks.clear()
        return gate.take({vb: self._cluster.copies(vb) for vb in gate.waiting()})

    def _receive(self, node: Node, max_bytes: int, portions: list[Events]) -> None:
        connection, now = node.connection, self._clock()
        if connection is None:  # closed for the sake of a node before it
            return
        try:
            self._read_bytes += connection.receive(max_bytes, now)
            if not node.is_settled:
                node.note_progress()
            self._note(node, connection.session, now)
        except BodiesNeeded as needed:
            portions.append(connection.session.take_events())
            self._restart_with_bodies(needed)
            return
        except (SourceUnavailable, ProtocolError) as error:
            self._cluster.lose(node, error, now)
        except AuthenticationFailed as error:
            if not self._tolerates_auth_failure(node, now):
                raise
            self._cluster.lose(node, error, now)
        portions.append(connection.session.take_events())

    def _note(self, node: Node, session: Session, now: float) -> None:
        self._has_streamed |= bool(node.streams.open_by_opaque)
        if session.high_seqnos:
            self._high_seqnos.update(session.high_seqnos)
            session.high_seqnos = {}
        if session.map_doubtful:
            session.map_doubtful = False
            self._cluster.refresh_soon(now)

    def _tolerates_auth_failure(self, node: Node, now: float) -> bool:
        if node.refused_since is None:
            node.refused_since = now
        return self._has_streamed and now < node.refused_since + AUTHENTICATION_GRACE_S

    def _restart_with_bodies(self, needed: BodiesNeeded) -> None:
        """Connect to all nodes again, for streams with bodies."""
        if self._options.needs_body is None:
            raise ConfigInvalid(f"source.metadata = xattr: {needed}; set it to inline") from needed
        self._bodies = True
        _log.info("feed.bodies_requested", msg=str(needed))
        self._cluster.disconnect()

    def acknowledge(self) -> None:
        """Tell the source that all events returned so far have been taken over (flow control)."""
        if self._gate is not None and self._gate.withheld_bytes > self._options.buffer_bytes:
            return  # the bytes that are withheld must stay bounded too
        for node in self._connected:
            if node.connection is not None:
                node.connection.session.acknowledge()
                try:
                    node.connection.flush()
                except SourceUnavailable as error:
                    self._cluster.lose(node, error, self._clock())

    def tick(self, now: float) -> float:
        """Do what is due at *now*: connect, ask, give up a dead connection. When to call again, at the latest.

        Raises:
            ConfigInvalid: no connection can be made with this configuration.
        """
        if not self._started:
            return float("inf")
        if self._gate is not None and now >= self._observe_at:
            self._observe_at = now + _OBSERVE_S
            self._observe(self._gate)
        next_at = self._cluster.tick(now)
        return min(next_at, self._observe_at) if self._gate else next_at

    def _observe(self, gate: PersistenceGate) -> None:
        """Ask every node with a copy how much it has persisted of the vbuckets of which something is withheld."""
        for vb, vbuuid in gate.waiting().items():
            for endpoint in self._cluster.copies(vb):
                session = self._cluster.session_at(endpoint)
                if session is not None:
                    session.ask(messages.observe(vb, vbuuid), partial(_note_observed, gate, vb, endpoint))

    def _connect(self, node: Node, attempt: int, now: float) -> Connection:
        self._incarnation += 1
        assert node.connection is None, "a node has one connection"
        share = max(_LEAST_BUFFER_BYTES, self._options.buffer_bytes // max(1, self._cluster.n_nodes))
        producer = ProducerOptions(
            f"{self._name}-{self._incarnation}",
            min(self._options.buffer_bytes, share),
            NOOP_INTERVAL_S,
            self._bodies,
            self._options.snappy,
        )
        options = SessionOptions(self._address, self._credentials, producer, self._options.needs_body)
        session = Session(
            options, node.streams, self._opaques, lambda text: self._cluster.learn(node, text, self._clock())
        )
        self._connected = [
            node,
            *(each for each in self._connected if each.connection is not None and each is not node),
        ]
        return Connection(node.endpoint, self._address.tls, attempt, session, self._resolver, self._epoll, now)

    def high_seqnos(self) -> Mapping[int, int]:
        """The highest seqno of each of our vbuckets that the source reported last; empty before it did."""
        return self._high_seqnos

    def connected(self) -> bool:
        """True if every stream that should run is running (open or being opened on a live connection)."""
        return self._started and self._cluster.running

    def ended(self) -> bool:
        """True if every stream has sent everything up to its end seqno; never for live ones. Valid after `start`."""
        return self._cluster.ended and not self._gate

    def close(self) -> None:
        """Close the connections; nothing comes any more. May be called twice, and before `start`."""
        self._started = False
        self._cluster.disconnect()
        self._epoll.close()


def _joined(portions: Iterable[Events]) -> Events:
    """All events of *portions*, in their order, as what the first one is."""
    first, *others = portions or [[]]
    for events in others:
        first.extend(events)
    return first


def _note_observed(gate: PersistenceGate, vb: int, endpoint: Endpoint, answer: Frame) -> None:
    if answer.status == Status.SUCCESS:
        gate.observe(vb, endpoint, messages.observed(answer))
