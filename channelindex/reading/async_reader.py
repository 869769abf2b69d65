"""The read side for asyncio: any number of followers cost one look at the index."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

from channelindex.errors import ReaderClosed, TokenAhead, Transient
from channelindex.reading.hub import TAIL_ENTRIES, Follower, Hub
from channelindex.reading.paging import Changes
from channelindex.reading.patience import BEHIND_S, Patience
from channelindex.reading.query import Query
from channelindex.reading.reader import ChangesReader, check_limit, read_pages
from channelindex.stores.base import IndexReader

Result = TypeVar("Result")


class AsyncChangesReader:
    """`ChangesReader` for asyncio; what is said there of answers, tokens and `active_only` holds here.

    Belongs to the event loop in which it is first used. *store* is asked from at most *n_threads* threads at once, and
    must bear that; `open_async_index` gives it one that does. *tail_entries*: see `Hub`.
    """

    def __init__(self, store: IndexReader, n_threads: int, tail_entries: int = TAIL_ENTRIES) -> None:
        self._store = store
        self._reader = ChangesReader(store)
        self._threads = ThreadPoolExecutor(n_threads, thread_name_prefix="channelindex-reader")
        self._tail_entries = tail_entries
        self._hub: Hub | None = None
        self._is_closed = False

    async def changes(
        self,
        channels: Iterable[str],
        since: str | None = None,
        limit: int | None = None,
        *,
        active_only: bool = False,
        doc_ids: Iterable[str] | None = None,
    ) -> Changes:
        """See `ChangesReader.changes`."""
        return await self._in_thread(
            lambda: self._reader.changes(channels, since, limit, active_only=active_only, doc_ids=doc_ids)
        )

    async def pages(
        self,
        channels: Iterable[str],
        since: str | None = None,
        limit: int | None = None,
        *,
        active_only: bool = False,
        doc_ids: Iterable[str] | None = None,
    ) -> AsyncGenerator[Changes, None]:
        """See `ChangesReader.pages`. Each is made when it is asked for."""
        pages = await self._in_thread(
            lambda: self._reader.pages(channels, since, limit, active_only=active_only, doc_ids=doc_ids)
        )
        while page := await self._in_thread(lambda: next(pages, None)):
            yield page

    def follow(
        self,
        channels: Iterable[str],
        since: str | None = None,
        limit: int | None = None,
        *,
        active_only: bool = False,
        doc_ids: Iterable[str] | None = None,
        behind_s: float = BEHIND_S,
    ) -> AsyncGenerator[Changes, None]:
        """See `ChangesReader.follow`; ends when its task is cancelled, or when the reader is closed.

        Who reads slowly holds up nobody, and nothing is queued for it: it is told later, and of fewer versions.

        Raises:
            TypeError, ValueError: at once; every other error comes with the first page.
        """
        check_limit(limit)
        return self._follow(Query.of(channels, doc_ids, active_only=active_only), since, limit, behind_s)

    async def _follow(
        self, query: Query, since: str | None, limit: int | None, behind_s: float
    ) -> AsyncGenerator[Changes, None]:
        patience = Patience(behind_s)
        hub = self._running_hub()
        follower = hub.join(query.channels)
        try:
            while True:
                try:
                    pages = await self._next_pages(hub, follower, query, since, limit)
                except (Transient, TokenAhead) as error:
                    await asyncio.sleep(patience.pause_after(error))
                    continue
                patience.reset()
                while page := await self._next_of(pages):
                    since = page.since
                    if page.entries:
                        yield page
        except ReaderClosed:
            return
        finally:
            hub.leave(follower)

    async def _next_pages(
        self, hub: Hub, follower: Follower, query: Query, since: str | None, limit: int | None
    ) -> Iterator[Changes]:
        """What is news to *follower*, as soon as there is any; from memory if it is there."""
        await follower.news.wait()
        view = await hub.current()
        base = follower.base
        follower.news.clear()  # from here on, for what is newer than the view
        if base is not None:
            kept = hub.from_memory(query, base, limit)
            if kept is not None:
                return _Kept(kept)
        try:
            return await self._in_thread(lambda: read_pages(self._store, view.snapshot, query, since, limit))
        except BaseException:
            follower.lose()
            raise

    async def _next_of(self, pages: Iterator[Changes]) -> Changes | None:
        """The next of *pages*, taken apart in a thread unless it lies ready."""
        if isinstance(pages, _Kept):
            return next(pages, None)
        return await self._in_thread(lambda: next(pages, None))

    def _running_hub(self) -> Hub:
        if self._is_closed:
            raise ReaderClosed
        if self._hub is None or self._hub.error is not None:
            self._hub = Hub(self._store, self._tail_entries)
            self._hub.start()
        return self._hub

    async def _in_thread(self, function: Callable[[], Result]) -> Result:
        if self._is_closed:
            raise ReaderClosed
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)

    async def close(self) -> None:
        """End all followers and close the store. Takes up to a second; may be called twice."""
        self._is_closed = True
        if self._hub is not None:
            await self._hub.close()
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._threads.shutdown)
        await loop.run_in_executor(None, self._reader.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class _Kept(Iterator[Changes]):
    """Pages that lie ready."""

    def __init__(self, pages: Iterable[Changes]) -> None:
        self._pages = iter(pages)

    def __next__(self) -> Changes:
        return next(self._pages)
