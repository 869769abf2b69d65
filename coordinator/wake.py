"""Hears at once that something changed in the coordination, instead of at the next tick. Only ever a hint."""

from channelindex.errors import AuthenticationFailed, CoordinationUnavailable
from channelindex.redis.link import Link, ServerLink

_MESSAGE = b"message"


class WakeSubscription:
    """A subscription to the channel on which peers wake this node, when it has something to take or to release.

    *redis* is for this alone. A message that gets lost costs a node no more than the wait for its next tick.
    """

    def __init__(self, redis: Link, channel: str) -> None:
        self._redis = redis
        self._channel = channel
        self._server: ServerLink | None = None

    def ensure_open(self) -> None:
        """Subscribe where we are not subscribed. Blocks for some round trips.

        A failure is not reported: the tick, which needs the same Redis, reports it, and where the tick succeeds it must
        not suffer from this.
        """
        if self._server is not None:
            return
        try:
            server = self._redis.server_of(self._channel)
            server.execute("SUBSCRIBE", self._channel)
        except (AuthenticationFailed, CoordinationUnavailable):
            self._redis.close()
        else:
            self._server = server
            assert server.fileno() is not None, "it is connected"

    def fileno(self) -> int | None:
        """The descriptor to wait on, None where we are not subscribed."""
        return self._server.fileno() if self._server else None

    def heard(self) -> bool:
        """Return true if a peer has woken us since the last call. Does not block; closes a broken subscription."""
        heard = False
        try:
            while self._server is not None and (message := self._server.listen(0)):
                heard |= message[0] == _MESSAGE
        except CoordinationUnavailable:
            self.close()
        return heard

    def close(self) -> None:
        """Unsubscribe. May be called twice."""
        self._server = None
        self._redis.close()
