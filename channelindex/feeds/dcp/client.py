"""The feed of one KV node: one connection, and another one whenever that is lost.

Nothing is lost or brought twice by a reconnect: the streams know, per vbucket, what was handed out last, and what a
connection brought before it broke is handed out first.
"""

import itertools
import os
import secrets
import select
import time
from collections.abc import Callable, Mapping, Sequence

from channelindex.errors import ChannelIndexError, ProtocolError, SourceUnavailable
from channelindex.feeds.base import Event
from channelindex.feeds.dcp.auth import Credentials
from channelindex.feeds.dcp.connection import NOOP_INTERVAL_S, Connection
from channelindex.feeds.dcp.connstr import SourceAddress
from channelindex.feeds.dcp.handshake import ProducerOptions
from channelindex.feeds.dcp.retry import delay_s
from channelindex.feeds.dcp.session import Session
from channelindex.feeds.dcp.streams import Streams
from channelindex.model import Checkpoint

DEFAULT_BUFFER_BYTES = 10 * 1024 * 1024
"""What the server may send unacknowledged: enough to keep it busy, and the bound of what a feed worker holds."""
_FIRST_RETRY_S = 0.1
_LONGEST_RETRY_S = 10.0
_NAME_CHARS = 100
"""Of the caller's part of a connection's name; servers take 200 bytes altogether."""


class DcpFeed:
    """A `feeds.base.Feed` on one KV node. *name* appears in the server's statistics; it need not be unique.

    With *end_seqnos* (by vbucket) the stream of such a vbucket ends as soon as everything up to that seqno has come.
    The server completes the snapshot, so more may come. *source_uuid* is the UUID of the bucket to expect; without it,
    that of the bucket which the first connection finds. *clock* is monotonic, the same that `tick` is given.

    Looking up the host's name blocks; nothing else does.
    """

    def __init__(
        self,
        address: SourceAddress,
        credentials: Credentials,
        *,
        name: str,
        source_uuid: str | None = None,
        end_seqnos: Mapping[int, int] | None = None,
        buffer_bytes: int = DEFAULT_BUFFER_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address = address
        self._credentials = credentials
        self._source_uuid = source_uuid
        self._end_seqnos = end_seqnos
        self._buffer_bytes = buffer_bytes
        self._clock = clock
        # A second connection of the same name would make the server close the first.
        self._name = f"channelindex:{name[:_NAME_CHARS]}:{os.getpid():x}-{secrets.token_hex(4)}"
        self._incarnation = 0
        self._opaques = itertools.count(1)
        self._epoll = select.epoll()
        self._streams = Streams({})
        self._connection: Connection | None = None
        self._connect_at = float("inf")
        self._connected_at = 0.0
        self._failures = 0
        self._high_seqnos: Mapping[int, int] = {}
        self.last_error: ChannelIndexError | None = None
        """Why the last connection was lost or could not be made; None once another one streams."""

    def start(self, checkpoints: Mapping[int, Checkpoint]) -> None:
        """Begin to stream each vbucket from its checkpoint; `read` and `tick` connect and reconnect."""
        self._streams = Streams(checkpoints, self._end_seqnos)
        self._connect_at = 0.0

    def fileno(self) -> int:
        """An epoll descriptor, readable whenever `read` has something to do."""
        return self._epoll.fileno()

    def read(self, max_bytes: int) -> Sequence[Event]:
        """The events that have arrived, from about *max_bytes* of input; empty when there is nothing now.

        Raises:
            AuthenticationFailed: the source refuses our credentials.
            ConfigInvalid: the bucket cannot be streamed as configured.
            IndexMismatch: the bucket is not the one that was expected.
        """
        connection = self._connection
        if connection is None:
            return ()
        try:
            connection.receive(max_bytes, self._clock())
            self._note(connection.session)
        except (SourceUnavailable, ProtocolError) as error:
            self._lose(error)
        return connection.session.take_events()

    def _note(self, session: Session) -> None:
        if session.streaming:
            self.last_error = None
        if session.source is not None:
            self._source_uuid = session.source.uuid
        if session.high_seqnos:
            self._high_seqnos = session.high_seqnos

    def acknowledge(self) -> None:
        """Tell the source that all events returned so far have been taken over (flow control)."""
        if self._connection is None:
            return
        self._connection.session.acknowledge()
        try:
            self._connection.flush()
        except SourceUnavailable as error:
            self._lose(error)

    def tick(self, now: float) -> float:
        """Do what is due at *now*: connect, ask, give up a dead connection. When to call again, at the latest."""
        try:
            if self._connection is None and now >= self._connect_at:
                self._connect(now)
            if self._connection is not None:
                return self._connection.tick(now)
        except SourceUnavailable as error:
            self._lose(error)
        return self._connect_at

    def _connect(self, now: float) -> None:
        self._incarnation += 1
        options = ProducerOptions(f"{self._name}-{self._incarnation}", self._buffer_bytes, NOOP_INTERVAL_S)
        session = Session(
            self._address.bucket, self._credentials, options, self._streams, self._opaques, self._source_uuid
        )
        self._connected_at = now
        self._connection = Connection(self._address, self._failures, session, self._epoll, now)

    def _lose(self, error: ChannelIndexError) -> None:
        """Drop the connection, and connect again after a while that grows with each failure in a row.

        A connection that did not last counts as a failure too, or one that always breaks would be made without end.
        """
        self.last_error = error
        now = self._clock()
        if self._connection is not None:
            if now - self._connected_at > _LONGEST_RETRY_S:
                self._failures = 0
            self._connection.close()
            self._connection = None
        self._streams.disconnect()
        self._connect_at = now + delay_s(self._failures, _FIRST_RETRY_S, _LONGEST_RETRY_S)
        self._failures += 1

    def high_seqnos(self) -> Mapping[int, int]:
        """The highest seqno of each of our vbuckets that the source told last; empty before it did."""
        return self._high_seqnos

    def connected(self) -> bool:
        """Whether every stream that should run is running (open or being opened on a live connection)."""
        connection = self._connection
        return connection is not None and connection.session.streaming and self._streams.all_running

    def ended(self) -> bool:
        """Whether every stream has brought all up to its end seqno; live ones never have. Ask after `start`."""
        return self._streams.all_ended

    def close(self) -> None:
        """Close the connection; nothing comes any more. May be called twice, and before `start`."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._connect_at = float("inf")
        self._epoll.close()
