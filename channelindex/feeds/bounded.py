"""Feeds that end, and reading one to its end."""

import select
import time
from collections.abc import Iterator, Sequence
from typing import Protocol

from channelindex.errors import SourceUnavailable
from channelindex.feeds.base import Event, EventSource

SILENCE_TIMEOUT_S = 60.0
"""A feed that brings nothing for so long is given up. Longer than a source takes to prepare a large backfill."""

_READ_BYTES = 1 << 20


class BoundedFeed(EventSource, Protocol):
    """A feed whose streams end, at seqnos that were the bucket's highest when it was made."""

    def ended(self) -> bool:
        """Whether every stream has brought all up to its end."""
        ...


def read_to_end(feed: BoundedFeed, silence_timeout_s: float = SILENCE_TIMEOUT_S) -> Iterator[Sequence[Event]]:
    """What *feed*, which has been started, brings, in portions; each is acknowledged when the next one is asked for.

    Raises:
        SourceUnavailable: it brought nothing for *silence_timeout_s*.
    """
    poll = select.poll()
    poll.register(feed.fileno(), select.POLLIN)
    heard_at = time.monotonic()
    while True:
        due = feed.tick(time.monotonic())
        events = feed.read(_READ_BYTES)
        yield events
        feed.acknowledge()
        now = time.monotonic()
        if events:
            heard_at = now
        elif feed.ended():
            return
        elif now - heard_at > silence_timeout_s:
            raise SourceUnavailable(f"the source brought nothing for {silence_timeout_s:g} s, and is not at its end")
        else:
            poll.poll(max(0.0, min(due, heard_at + silence_timeout_s) - now) * 1000)
