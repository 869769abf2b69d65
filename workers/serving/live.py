"""An answer that stays open: sends each change as it comes, and a heartbeat where none does."""

import asyncio
import math
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from channelindex.errors import TokenAhead, Transient
from channelindex.reading.following import Delivery, Following, Part
from channelindex.reading.hub import Kept
from channelindex.reading.patience import Patience
from workers.serving import rows
from workers.serving.counters import Counters
from workers.serving.http_error import Headers
from workers.serving.http_exchange import JSON, Exchange
from workers.serving.request import FeedKind, FeedRequest

DEFAULT_TIMEOUT_S = 60.0
EVENT_HEARTBEAT_S = 30.0
"""Of an event stream for which none was asked: browsers cannot, and proxies cut connections that are silent."""
FIRST_READ_S = 1.0
"""A feed's first read is waited for so long, so that an error in it has a status; then the answer begins without it."""
PAUSE_STEP_S = 0.1
"""A feed that pauses notices within this that it is to end."""
LIVE: Headers = ((b"cache-control", b"private, no-store"), (b"x-accel-buffering", b"no"))
_EVENTS = (b"content-type", b"text/event-stream; charset=utf-8")
_OPENING = {FeedKind.LONGPOLL: rows.HEAD, FeedKind.CONTINUOUS: b"", FeedKind.EVENTSOURCE: b"retry: 2000\n\n"}
_HEARTBEAT = {
    FeedKind.LONGPOLL: b"\n",
    FeedKind.CONTINUOUS: b"\n",
    FeedKind.EVENTSOURCE: b"event: heartbeat\ndata: \n\n",
}


class LiveAnswer:
    """One answer to *request*, by *exchange*, of what *following* follows; one of *feeds*, those that somebody may end.

    It is there in thousands, each with a task that waits: what waits within `run` is kept few calls deep.
    """

    __slots__ = (
        "_cache",
        "_exchange",
        "_feeds",
        "_following",
        "_heartbeat_s",
        "_is_caught_up",
        "_left",
        "_n_followers",
        "_n_rows",
        "_pending",
        "_request",
        "_rows",
        "_sent_at",
        "_timeout_s",
        "_wake_seconds",
        "is_ending",
    )  # fmt: skip

    def __init__(
        self,
        exchange: Exchange,
        request: FeedRequest,
        following: Following,
        feeds: "set[LiveAnswer]",
        cache: rows.ChunkCache,
        counters: Counters,
    ) -> None:
        self._exchange = exchange
        self._request = request
        self._following = following
        self._feeds = feeds
        self._cache = cache
        self._wake_seconds = counters.wake_seconds
        self._rows = counters.rows.labels(request.feed.value)
        self._n_followers = counters.followers.labels(request.feed.value)
        self._left = request.limit
        self._n_rows = 0
        self._pending = 0
        self._is_caught_up = False
        self._sent_at = time.monotonic()
        self.is_ending = False
        by_default = EVENT_HEARTBEAT_S if request.feed is FeedKind.EVENTSOURCE and request.timeout_s is None else None
        self._heartbeat_s = request.heartbeat_s or by_default
        self._timeout_s = DEFAULT_TIMEOUT_S if request.timeout_s is None else request.timeout_s

    def open(self) -> None:
        """Be one of the feeds that are open. `close` it."""
        assert self not in self._feeds, "it is opened once"
        self._feeds.add(self)
        self._n_followers.inc()
        self._exchange.connection.on_lost = self.end

    def close(self) -> None:
        """Be none of them."""
        self._feeds.discard(self)
        self._n_followers.dec()
        self._following.leave()

    def end(self) -> None:
        """Have it end as soon as it can, in good order."""
        self.is_ending = True
        self._following.wake()

    async def run(self) -> None:
        """Write all of it.

        Raises:
            ChannelIndexError: the index cannot be read. A store that is away is waited for, once the answer has begun.
            Gone: the client has gone.
        """
        self._exchange.forget_request()
        patience = Patience()
        while not (self.is_ending or self._is_full()):
            try:
                if not self._following.is_up_to_date:
                    await self._tell_news()
                    patience.reset()
                await self.begin()
                if not self._is_caught_up and self._following.is_up_to_date:
                    await self._catch_up()
                if not (self._is_full() or await self._wait()):
                    break
            except (Transient, TokenAhead) as error:
                if not self._exchange.has_begun:
                    raise
                await self._pause(patience.pause_after(error))
        await self.begin()
        await self._exchange.end(self._end())

    async def begin(self) -> None:
        """Send what comes before all rows, if it is not sent."""
        if not self._exchange.has_begun:
            kind = _EVENTS if self._request.feed is FeedKind.EVENTSOURCE else JSON
            await self._exchange.begin(rows.OK, kind, *LIVE)
            await self._exchange.write(_OPENING[self._request.feed])

    async def _tell_news(self) -> None:
        async with aclosing(self._following.news(self._page_size())) as news:
            while part := await self._next(news):
                self._pending = part.page.pending
                if part.page.entries:
                    await self.begin()
                    await self._send(part)
                if self._left == 0 or self.is_ending:
                    return
        if not self._is_caught_up:
            await self._catch_up()

    async def _catch_up(self) -> None:
        """From here on deletions are sent, also where a client that began with nothing was not to get them."""
        self._is_caught_up = True
        if self._request.feed is not FeedKind.LONGPOLL and self._left is None and self._request.seq_interval is None:
            self._following.delivery = Delivery(rows.PART, self._send_at_once)
        self._following.query = self._following.query._replace(active_only=False)
        if self._request.feed is FeedKind.EVENTSOURCE:
            await self.begin()
            await self._exchange.write(b"event: up-to-date\ndata: \n\n")

    async def _next(self, news: AsyncGenerator[Part, None]) -> Part | None:
        """The next part; meanwhile heartbeats."""
        if not self._following.has_to_read and self._exchange.has_begun:
            return await anext(news, None)
        task = asyncio.ensure_future(anext(news, None))
        try:
            while not task.done():
                timeout_s = (self._heartbeat_s or DEFAULT_TIMEOUT_S) if self._exchange.has_begun else FIRST_READ_S
                done, _ = await asyncio.wait({task}, timeout=timeout_s)
                if not done:
                    await (self._beat() if self._exchange.has_begun else self.begin())
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
        return task.result()

    async def _send(self, part: Part) -> None:
        feed, n_before = self._request.feed, self._n_rows
        self._n_rows += len(part.page.entries)
        self._left = None if self._left is None else self._left - len(part.page.entries)
        if feed is FeedKind.LONGPOLL:
            made = rows.rows_of(part, n_before, self._request.seq_interval)
            content = rows.as_array(made, is_first=not n_before)
        else:
            content = rows.render(part, feed, n_before, self._request.seq_interval)
            if self._following.seen_at is not None:
                self._wake_seconds.observe(time.monotonic() - self._following.seen_at)
        self._rows.inc(len(part.page.entries))
        await self._exchange.write(content)
        self._sent_at = time.monotonic()

    def _send_at_once(self, kept: Kept) -> bool:
        """Send what is in memory, while `run` waits; false where the client has yet to read what came before."""
        chunk = self._cache.chunk_of(kept, self._request.feed)
        if chunk.content:
            if not self._exchange.connection.push(chunk.content):
                return False
            self._sent_at = time.monotonic()
            self._rows.inc(chunk.n_rows)
            self._wake_seconds.observe(self._sent_at - kept.seen_at)
        return True

    async def _wait(self) -> bool:
        """Wait for news, with heartbeats; false once there were none for as long as the client waits."""
        while True:
            left_s = self._sent_at + (self._heartbeat_s or self._timeout_s) - time.monotonic()
            if left_s > 0:
                if await self._following.wait(left_s):
                    return True
            elif self._heartbeat_s is None:
                return False
            else:
                await self._beat()

    async def _pause(self, pause_s: float) -> None:
        """Pause for a store that is away."""
        assert pause_s >= 0
        for _ in range(math.ceil(pause_s / PAUSE_STEP_S)):
            if self.is_ending:
                return
            await asyncio.sleep(PAUSE_STEP_S)
        if self._heartbeat_s is not None and time.monotonic() - self._sent_at >= self._heartbeat_s:
            await self._beat()

    async def _beat(self) -> None:
        assert self._exchange.has_begun, "no heartbeat comes before the head"
        await self._exchange.write(_HEARTBEAT[self._request.feed])
        self._sent_at = time.monotonic()

    def _page_size(self) -> int:
        """Documents between full tokens: of a limit a part without a rest, so that a page can end at it."""
        left = self._left
        if left is None or left % rows.PART == 0:
            return rows.PART
        return left if left < rows.PART else _part_of(left)

    def _is_full(self) -> bool:
        return self._left == 0 or (self._request.feed is FeedKind.LONGPOLL and self._n_rows > 0)

    def _end(self) -> bytes:
        progress, token = self._following.place
        match self._request.feed:
            case FeedKind.LONGPOLL:
                return rows.array_end(progress, token, self._pending, is_empty=not self._n_rows)
            case FeedKind.CONTINUOUS:
                return rows.line_end(progress, token, self._pending)
        return b""


def _part_of(limit: int) -> int:
    """The first size from `PART` on of which *limit* is a multiple."""
    assert limit > 0
    return next(size for size in range(rows.PART, limit + 1) if limit % size == 0)
