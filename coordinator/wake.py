"""Hears at once that something changed in the coordination, instead of at the next tick. Only ever a hint."""

from typing import Any

import redis

from coordinator.connection import RedisClient


class WakeSubscription:
    """A subscription to the channel on which this node is told that there is something to take or to release.

    A message that gets lost costs a node no more than the wait for its next tick.
    """

    def __init__(self, client: RedisClient, channel: str) -> None:
        self._client = client
        self._channel = channel
        self._pubsub: redis.client.PubSub | None = None

    def ensure_open(self) -> None:
        """Subscribe where we are not subscribed. Blocks for some round trips.

        A failure is not reported: the tick, which needs the same Redis, will say what is the matter, and where it
        succeeds it must not suffer from this.
        """
        if self._pubsub is not None:
            return
        pubsub = self._client.pubsub()  # type: ignore[no-untyped-call]
        try:
            pubsub.subscribe(self._channel)
        except (redis.RedisError, OSError):
            pubsub.close()
        else:
            self._pubsub = pubsub

    def fileno(self) -> int | None:
        """The descriptor to wait on, None where we are not subscribed."""
        connection: Any = self._pubsub.connection if self._pubsub else None
        # redis-py has no public way to wait for a subscription and for something else at the same time.
        connected = connection._sock if connection else None  # noqa: SLF001
        return connected.fileno() if connected else None

    def heard(self) -> bool:
        """Whether somebody said something since the last call. Does not block; closes a broken subscription."""
        if self._pubsub is None:
            return False
        heard = False
        try:
            while message := self._pubsub.get_message(timeout=0):
                heard |= message["type"] == "message"
        except (redis.RedisError, OSError):
            self.close()
        return heard

    def close(self) -> None:
        """Unsubscribe. May be called twice."""
        if self._pubsub is not None:
            self._pubsub.close()
            self._pubsub = None
