"""Defines feeds that end, and loops over their events."""

import time
from collections.abc import Callable, Iterator
from typing import Protocol

from channelindex.errors import SourceUnavailable
from channelindex.feeds.base import Event, Events, EventSource
from channelindex.polling import wait_readable

SILENCE_TIMEOUT_S = 60.0
"""A feed that sends nothing for so long is given up. Longer than a source takes to prepare a large backfill."""

_READ_BYTES = 1 << 20
_LONGEST_WAIT_S = 1.0


class BoundedFeed(EventSource, Protocol):
    """A feed whose streams end, at seqnos that were the bucket's highest when it was made."""

    def ended(self) -> bool:
        """True if every stream has sent everything up to its end."""
        ...


def read_to_end(feed: BoundedFeed, silence_timeout_s: float = SILENCE_TIMEOUT_S) -> Iterator[Events]:
    """Yield the events of *feed*, which has been started, in portions; each is acknowledged when the next is requested.

    Raises:
        SourceUnavailable: it sent nothing for *silence_timeout_s*.
    """
    return _read_until(feed, feed.ended, silence_timeout_s)


def events(feed: EventSource, done: Callable[[], bool] = lambda: False) -> Iterator[Event]:
    """Yield the events of *feed*, which was started, as they come; block while there are none. End when *done* does.

    What was read is acknowledged when all of it has been taken: a consumer that is slow makes the source wait.

    Raises:
        ChannelIndexError: as `EventSource.read`.
    """
    for portion in _read_until(feed, done, float("inf")):
        yield from portion


def _read_until(feed: EventSource, done: Callable[[], bool], silence_timeout_s: float) -> Iterator[Events]:
    assert silence_timeout_s > 0
    heard_at = time.monotonic()
    while not done():
        due = feed.tick(time.monotonic())
        portion = feed.read(_READ_BYTES)
        yield portion
        feed.acknowledge()
        now = time.monotonic()
        if portion:
            heard_at = now
        elif now - heard_at > silence_timeout_s:
            raise SourceUnavailable(f"the source sent nothing for {silence_timeout_s:g} s, and is not at its end")
        elif not done():
            wait_s = min(due, heard_at + silence_timeout_s, now + _LONGEST_WAIT_S) - now
            wait_readable([feed], wait_s)
