"""One KV node as the feed sees it: its streams and, while it can be had, the connection that carries them."""

from collections.abc import Callable
from datetime import UTC, datetime

from channelindex import logs
from channelindex.backoff import Backoff
from channelindex.errors import ChannelIndexError, ProtocolError
from channelindex.feeds.dcp.connection import Connection
from channelindex.feeds.dcp.connstr import Endpoint
from channelindex.feeds.dcp.keyspace import CollectionMissing
from channelindex.feeds.dcp.streams import Streams

_FIRST_RETRY_S = 0.1
LONGEST_RETRY_S = 10.0

Connect = Callable[["Node", int, float], Connection]
"""Begins the attempt of that number to connect to a node, at a time."""

_log = logs.get("feed")


class Node:
    """Connects, and again after every loss. A node without streams of ours serves to learn the cluster's map."""

    def __init__(self, endpoint: Endpoint, connect: Connect, attempt: int = 0) -> None:
        self.endpoint = endpoint
        self.streams = Streams({})
        self.connection: Connection | None = None
        self.announced: Endpoint | None = None
        """The address under which the cluster's map has this node, as it said itself."""
        self.last_error: ChannelIndexError | None = None
        """Why the last connection was lost or could not be made; None once another one streams."""
        self.refused_since: float | None = None
        """Time at which the node began to refuse us, if it has opened no stream since."""
        self._missing_since = ""
        """Time at which a collection of ours was first missing, if nothing was streamed since."""
        self.connect_at = 0.0
        """Earliest time of the next connection, while there is none."""
        self._connect = connect
        self._attempt = attempt
        self._connected_at = 0.0
        self._backoff = Backoff(_FIRST_RETRY_S, LONGEST_RETRY_S)
        self._reported_connected = False
        self.is_settled = False
        """True if further input changes nothing here: the node streams, and that was reported."""

    @property
    def live(self) -> bool:
        """True if there is a connection whose handshake is over."""
        return self.connection is not None and self.connection.session.streaming

    @property
    def running(self) -> bool:
        """True if all streams that should run here are running."""
        return self.streams.all_running and (self.live or not len(self.streams))

    def tick(self, now: float) -> float:
        """Do what is due at *now*: connect, ask, give up a dead connection. When to call again, at the latest.

        Raises:
            SourceUnavailable, ProtocolError: to be passed to `lose`.
            ConfigInvalid: a connection cannot be made with this configuration.
        """
        if self.connection is None:
            if now < self.connect_at:
                return self.connect_at
            self._connected_at = now
            self._attempt += 1
            self.connection = self._connect(self, self._attempt - 1, now)
        return self.connection.tick(now)

    def note_progress(self) -> None:
        """Tell once per connection that it streams; and forget that we were refused, once we are not any more."""
        if self.live and (self.streams.open_by_opaque or not len(self.streams)):
            self.refused_since = None
            self._missing_since = ""
            self.is_settled = True
        if self.live and not self._reported_connected:
            self._reported_connected = True
            self.last_error = None
            _log.info("feed.connected", server=self.endpoint, streams=len(self.streams))

    def lose(self, error: ChannelIndexError, now: float) -> None:
        """Drop the connection, and connect again after a while that grows with each failure in a row.

        A connection that did not last counts as a failure too, or one that always breaks would be made without end.
        """
        if self.connection is not None and now - self._connected_at > LONGEST_RETRY_S:
            self._backoff.reset()
        self.last_error = error
        ignored = self.connection.session.ignored_frames if self.connection is not None else 0
        self.disconnect()
        delay_s = self._backoff.next_delay_s()
        self.connect_at = now + delay_s
        if isinstance(error, CollectionMissing):
            self._missing_since = self._missing_since or datetime.now(UTC).isoformat(timespec="seconds")
            _log.warning(
                "feed.collection_missing",
                server=self.endpoint,
                msg=str(error),
                since=self._missing_since,
                retry_s=round(delay_s, 2),
            )
            return
        event = "feed.protocol_broken" if isinstance(error, ProtocolError) else "feed.connection_lost"
        _log.warning(event, server=self.endpoint, msg=str(error), retry_s=round(delay_s, 2), ignored_frames=ignored)

    def disconnect(self) -> None:
        """Close the connection; the streams wait for the next one, which may be made at once."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None
        self.streams.disconnect()
        assert not self.streams.open_by_opaque, "nothing is open without a connection"
        self._reported_connected = self.is_settled = False
        self.connect_at = 0.0
