"""One follower of an index in asyncio: waits for news, and fetches it from memory or from the index."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import NamedTuple, Protocol, TypeVar

from channelindex.errors import TokenAhead
from channelindex.reading.changes_reader import NOW, read_pages
from channelindex.reading.hub import Hub, HubView, Kept, position
from channelindex.reading.paging import Changes
from channelindex.reading.query import Query
from channelindex.reading.since_token import Delivered
from channelindex.reading.snapshot import IndexSnapshot
from channelindex.stores.base import IndexReader

Result = TypeVar("Result")


_AT_REST = (Delivered.NOTHING, Delivered.ANYTHING)
"""Marks of who has read all: since the beginning, or since a rollback."""


class InThreads(Protocol):
    """Runs functions in threads."""

    async def __call__(self, function: Callable[[], Result]) -> Result:
        """Return what *function* returns in a thread."""
        ...


class Part(NamedTuple):
    """An answer, and the token `before` it: the last one that the follower had, or one that is as good."""

    before: str | None
    page: Changes


class Delivery(NamedTuple):
    """Delivers what is in memory, *limit* documents a page, without waiting; `deliver` returns false if it cannot."""

    limit: int
    deliver: Callable[[Kept], bool]


class Following:
    """A follower of *hub* that asks for *query* and begins after *since*. `leave` it when done.

    Who reads slowly holds up nobody, and nothing is queued for it. `seen_at` is when the hub saw the news that is being
    delivered, monotonic; None while they are read from the index.
    """

    def __init__(self, hub: Hub, store: IndexReader, in_threads: InThreads, query: Query, since: str | None) -> None:
        self.query = query
        self._hub = hub
        self._store = store
        self._in_threads = in_threads
        self._since = since
        self._progress = 0
        self._is_at_hub = False
        self._delivered: Delivered | None = Delivered.NOTHING
        self._has_left = False
        self._follower = hub.join(query.channels)
        self.seen_at: float | None = None
        self.delivery: Delivery | None = None
        if since == NOW and hub.is_fresh:
            assert hub.view is not None, "it would not be fresh"
            self._since, self._progress = position(hub.view, query), hub.view.progress
        if self._since is not None and self._since != NOW:
            self._is_at_hub = hub.settle(self._follower, query, self._since)

    def move(self, page: Changes) -> None:
        """Go on after *page*, which was read otherwise."""
        assert not self._has_left
        self._since, self._progress = page.since, page.progress
        self._is_at_hub = self._hub.settle(self._follower, self.query, page.since)

    @property
    def place(self) -> tuple[int, str | None]:
        """`Changes.progress` and the token of where the follower is, the newest that are known."""
        if self._is_at_hub and self.is_up_to_date:
            assert self._hub.view is not None, "it is where the hub is"
            assert self._delivered is not None, "it would be elsewhere"
            return self._hub.view.progress, position(self._hub.view, self.query, self._delivered)
        return self._progress, self._since

    @property
    def has_to_read(self) -> bool:
        """True if `news` reads the index, which takes time."""
        return self._follower.base is None

    @property
    def is_up_to_date(self) -> bool:
        """True while nothing is known to be news."""
        return not self._follower.has_news and self._follower.base is None

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for news, at most *timeout_s*; true if there may be some, or somebody has called `wake`.

        With `delivery`, news that is in memory is delivered, and the wait goes on.
        """
        assert not self._has_left, "who has left waits for nothing"
        if self.is_up_to_date:
            is_delivered = self.delivery is not None and self._is_at_hub
            self._follower.deliver = self._deliver_from_memory if is_delivered else None
            try:
                async with asyncio.timeout(timeout_s):
                    await self._follower.wait()
            except TimeoutError:
                pass
            finally:
                self._follower.deliver = None
        return not self.is_up_to_date

    def _deliver_from_memory(self, base: int) -> bool:
        assert self.delivery is not None, "it waits with it"
        kept = self._from_memory(base, self.delivery.limit)
        if kept is None or not self.delivery.deliver(kept):
            return False
        self._since, self._progress = kept.pages[-1].since, kept.pages[-1].progress
        return True

    def _from_memory(self, base: int, limit: int | None) -> Kept | None:
        """Return what came after the view of number *base*, at which the follower is."""
        assert self._delivered is not None, "it would be elsewhere"
        return self._hub.from_memory(self.query, base, self._delivered, limit)

    def wake(self) -> None:
        """End a `wait` without news."""
        self._follower.lose()

    async def news(self, limit: int | None) -> AsyncGenerator[Part, None]:
        """Yield what came up to the hub's view, *limit* documents a page; at least one page, which may be empty.

        Raises:
            See `ChangesReader.changes`, and whatever has ended the hub.
        """
        view = await self._hub.fresh()
        base = self._follower.base
        self._follower.has_news, self._follower.base = False, None  # from here on, for what is newer than the view
        self._is_at_hub = False
        kept = None if base is None else self._from_memory(base, limit)
        self.seen_at = None
        if kept is None:
            pages = await self._read(view, limit)
            while page := await self._in_threads(lambda: next(pages, None)):
                yield self._moved_to(self._since, page)
        else:
            self.seen_at = view.at
            before: str | None = kept.begin
            for page in kept.pages:
                yield self._moved_to(before, page)
                before = page.since
        self._delivered = next((mark for mark in _AT_REST if self._since == position(view, self.query, mark)), None)
        self._is_at_hub = self._delivered is not None
        self._follower.has_read(is_elsewhere=not self._is_at_hub)

    def _moved_to(self, before: str | None, page: Changes) -> Part:
        self._since, self._progress = page.since, page.progress
        return Part(before, page)

    async def _read(self, view: HubView, limit: int | None) -> Iterator[Changes]:
        query, since = self.query, self._since

        def read() -> Iterator[Changes]:
            try:
                return read_pages(self._store, view.snapshot, query, since, limit)
            except TokenAhead:  # of an answer that was read after the hub looked: some of it may be delivered again
                return read_pages(self._store, IndexSnapshot.take(self._store), query, since, limit)

        try:
            return await self._in_threads(read)
        except BaseException:
            self._follower.lose()
            raise

    def leave(self) -> None:
        """Tell the hub that nobody follows here any more. May be called twice."""
        if not self._has_left:
            self._has_left = True
            self._hub.leave(self._follower)
