"""The read side for asyncio: any number of followers cost one look at the index."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

from channelindex.errors import ReaderClosed, TokenAhead, Transient
from channelindex.model import IndexMeta
from channelindex.reading.changes_reader import CONSUMED_AT_ONCE, NOW, ChangesReader, check_limit
from channelindex.reading.following import Following
from channelindex.reading.hub import KEPT_ENTRIES, Hub
from channelindex.reading.keeping import TokenStore
from channelindex.reading.paging import Changes
from channelindex.reading.patience import BEHIND_S, Patience
from channelindex.reading.query import Query
from channelindex.reading.snapshot import IndexSnapshot
from channelindex.stores.base import IndexReader

Result = TypeVar("Result")


class AsyncChangesReader:
    """`ChangesReader` for asyncio; what is said there of answers, tokens and `active_only` holds here.

    Belongs to the event loop in which it is first used. *store* is asked from at most *n_threads* threads at once, and
    must allow that; `open_async_index` gives it one that does. *kept_entries*: see `Hub`.
    """

    def __init__(self, store: IndexReader, n_threads: int, kept_entries: int = KEPT_ENTRIES) -> None:
        self._store = store
        self._reader = ChangesReader(store)
        self._threads = ThreadPoolExecutor(n_threads, thread_name_prefix="channelindex-reader")
        self._kept_entries = kept_entries
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

        Who reads slowly holds up nobody, and nothing is queued for it: it gets its news later, and fewer versions.

        Raises:
            TypeError, ValueError: at once; every other error comes with the first page.
        """
        check_limit(limit)
        return self._follow(Query.of(channels, doc_ids, active_only=active_only), since, limit, behind_s)

    async def _follow(
        self, query: Query, since: str | None, limit: int | None, behind_s: float
    ) -> AsyncGenerator[Changes, None]:
        patience = Patience(behind_s)
        following = self.following(query, since)
        try:
            while True:
                await following.wait()
                try:
                    async with aclosing(following.news(limit)) as news:
                        async for part in news:
                            patience.reset()
                            if part.page.entries:
                                yield part.page
                except (Transient, TokenAhead) as error:
                    await asyncio.sleep(patience.pause_after(error))
        except ReaderClosed:
            return
        finally:
            following.leave()

    async def consume(
        self,
        channels: Iterable[str],
        kept: TokenStore,
        since: str | None = None,
        limit: int | None = CONSUMED_AT_ONCE,
        *,
        active_only: bool = False,
        doc_ids: Iterable[str] | None = None,
        behind_s: float = BEHIND_S,
    ) -> AsyncGenerator[Changes, None]:
        """See `ChangesReader.consume`. *kept* is called in threads, never twice at once; ends as `follow` does."""
        check_limit(limit)
        query = Query.of(channels, doc_ids, active_only=active_only)
        begin = await self._in_thread(kept.load) or since
        if begin == NOW:  # it stays the same now if we end before there is anything
            begin = (await self.page(query, NOW, None)).since
            await self._in_thread(partial(kept.save, begin))
        async with aclosing(self._follow(query, begin, limit, behind_s)) as pages:
            async for page in pages:
                yield page
                await self._save(kept, page.since)

    async def _save(self, kept: TokenStore, since: str) -> None:
        """Save *since* in *kept*; while that is away, try again."""
        patience = Patience()
        while True:
            try:
                return await self._in_thread(partial(kept.save, since))
            except Transient as error:
                await asyncio.sleep(patience.pause_after(error))

    async def token_at(self, channels: Iterable[str], time_s: float, *, doc_ids: Iterable[str] | None = None) -> str:
        """See `ChangesReader.token_at`."""
        return await self._in_thread(partial(self._reader.token_at, channels, time_s, doc_ids=doc_ids))

    async def position_at(self, query: Query, time_s: float) -> str:
        """`token_at` for *query*."""
        return await self._in_thread(partial(self._reader.position_at, query, time_s))

    def following(self, query: Query, since: str | None) -> Following:
        """A follower that asks for *query* and is at *since*, for callers that need more than `follow` yields.

        Raises:
            ReaderClosed: the reader is closed.
        """
        return Following(self._running_hub(), self._store, self._in_thread, query, since)

    async def page(self, query: Query, since: str | None, limit: int | None) -> Changes:
        """The page at *since*, as `changes` returns it."""
        return await self._in_thread(lambda: self._reader.page(query, since, limit))

    async def parts(self, query: Query, since: str | None, limit: int | None, part: int) -> Iterator[Changes]:
        """Read what is news to *query* after *since*, as `pages` does, each page in parts of *part* documents.

        What is returned makes no request: it takes time to compute alone.
        """
        return await self._in_thread(lambda: self._reader.parts(query, since, limit, part))

    async def compute(self, function: Callable[[], Result]) -> Result:
        """Return what *function* returns, in one of the reader's threads.

        Raises:
            ReaderClosed: the reader is closed.
        """
        return await self._in_thread(function)

    async def stable_counter(self) -> int:
        """A number that rises with every advance of the stable clock."""
        return await self._in_thread(self._store.stable_counter)

    async def meta(self) -> IndexMeta:
        """See `IndexReader.meta`."""
        return await self._in_thread(self._store.meta)

    async def channels(self) -> list[str]:
        """The names of all channels that have an entry, sorted."""
        return await self._in_thread(lambda: sorted(self._store.channels()))

    async def counters(self, channels: Sequence[str]) -> list[int]:
        """The counters of *channels*, in their order; 0 for one without entries."""
        states = await self._in_thread(lambda: self._store.channel_states(channels))
        return [state.counter if state is not None else 0 for state in states]

    async def snapshot(self) -> IndexSnapshot:
        """The index as of now."""
        return await self._in_thread(self._reader.snapshot)

    def _running_hub(self) -> Hub:
        if self._is_closed:
            raise ReaderClosed
        if self._hub is None or self._hub.error is not None:
            self._hub = Hub(self._store, self._kept_entries)
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
