"""The simplest way to use a feed: a loop over its events."""

import select
import time
from collections.abc import Callable, Iterator

from channelindex.feeds.base import Event, EventSource

READ_BYTES = 256 * 1024


def events(feed: EventSource, done: Callable[[], bool] = lambda: False) -> Iterator[Event]:
    """The events of *feed*, which was started, as they come; blocks while there are none. Ends when *done* says so.

    What was read is acknowledged when all of it has been taken: a consumer that is slow makes the source wait.

    Raises:
        ChannelIndexError: as `EventSource.read`.
    """
    poll = select.poll()
    poll.register(feed.fileno(), select.POLLIN)
    while not done():
        wake_at = feed.tick(time.monotonic())
        read = feed.read(READ_BYTES)
        yield from read
        feed.acknowledge()
        if not read:
            poll.poll(max(0.0, min(1.0, wake_at - time.monotonic())) * 1000)
