"""Reads an index once per move of its stable clock, for all followers of a process. Belongs to one event loop.

One subscription waits. When the clock has moved, however often since the last look, one snapshot is taken and all
followed channels are read from where the hub was, each once, in one request. What they brought is kept for a while, as
a *wake*, apart by channel: a follower that is a few wakes behind is answered from memory. Followers of channels
without news are not even woken.

A follower that is further behind, or joins, or lives through a rollback reads for itself, by its token and as of the
hub's snapshot: then it is where the hub is. So nobody is ever queued for, and what is in memory can be forgotten at any
time.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, TypeVar

from channelindex.errors import ChangesForgotten, ChannelIndexError, IndexCorrupt, ReaderClosed, TokenAhead, Transient
from channelindex.reading.block_walk import NOTHING_READ, walk
from channelindex.reading.paging import Changes, Pager
from channelindex.reading.patience import Patience
from channelindex.reading.query import Query
from channelindex.reading.scan import ChannelScans, FoundByVb, Scan
from channelindex.reading.snapshot import IndexSnapshot, Snapshots
from channelindex.reading.token import Token
from channelindex.stores.base import IndexReader

WAIT_S = 1.0
"""A wait for the stable clock; closing takes so long."""
TAIL_ENTRIES = 100_000
"""Entries kept in memory, some 300 bytes each."""
MOST_AT_ONCE = 5_000
"""Entries that one answer takes from memory. It is made on the event loop: more would hold up everybody else."""

MOST_WAKES = 200
"""Wakes kept in memory; each has a clock of its own."""

Result = TypeVar("Result")


class HubView(NamedTuple):
    """The moment at which the hub is."""

    number: int
    snapshot: IndexSnapshot

    @property
    def position(self) -> Token:
        """The token of who is there, too."""
        return self.snapshot.position


class Wake(NamedTuple):
    """The entries that came from *before* on, up to the view of *number*, by channel."""

    number: int
    before: Token
    found: dict[str, FoundByVb]
    n_entries: int


class Follower:
    """A follower's place. With `news` set, it is to be told what came after the view of number `base`.

    Without a `base`, it has to read by its token.
    """

    __slots__ = ("base", "channels", "news")

    def __init__(self, channels: tuple[str, ...]) -> None:
        self.channels = channels
        self.base: int | None = None
        self.news = asyncio.Event()
        self.news.set()

    def notice(self, base: int) -> None:
        """There is news after the view of number *base*."""
        if not self.news.is_set():
            self.base = base
            self.news.set()

    def lose(self) -> None:
        """Its place is no longer known to the hub."""
        self.base = None
        self.news.set()


class Hub:
    """See the module. *store* is asked from threads; *tail_entries* is how many entries are kept."""

    def __init__(self, store: IndexReader, tail_entries: int = TAIL_ENTRIES) -> None:
        self._store = store
        self._snapshots = Snapshots(store)
        self._tail_entries = tail_entries
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="channelindex-hub")
        self._task: asyncio.Task[None] | None = None
        self._followers_by_channel: dict[str, set[Follower]] = {}
        self._n_followers = 0
        self._late: set[Follower] = set()  # joined while the followed channels were being read
        self._tail: deque[Wake] = deque()
        self._n_entries = 0
        self._pages: dict[tuple[Query, int, int | None], list[Changes]] = {}
        self._has_view = asyncio.Event()
        self._is_followed = asyncio.Event()
        self.view: HubView | None = None
        self.error: ChannelIndexError | None = None

    def start(self) -> None:
        """Begin to look. Called once, on the event loop."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """End; followers are let go with `ReaderClosed`. Waits for the thread, up to WAIT_S."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self.error is None:
            self._end(ReaderClosed())
        await asyncio.get_running_loop().run_in_executor(None, self._thread.shutdown)

    async def current(self) -> HubView:
        """The newest view, as soon as there is one.

        Raises:
            ChannelIndexError: why the hub has ended.
        """
        await self._has_view.wait()
        if self.error is not None:
            raise self.error
        assert self.view is not None, "what ends the hub is an error"
        return self.view

    def join(self, channels: tuple[str, ...]) -> Follower:
        """A follower of *channels*, that begins by its token."""
        follower = Follower(channels)
        for channel in channels:
            self._followers_by_channel.setdefault(channel, set()).add(follower)
        self._late.add(follower)
        self._n_followers += 1
        self._is_followed.set()
        return follower

    def leave(self, follower: Follower) -> None:
        """Forget *follower*. Nobody looks at an index that nobody follows."""
        self._n_followers -= 1
        if not self._n_followers:
            self._is_followed.clear()
        self._late.discard(follower)
        for channel in follower.channels:
            followers = self._followers_by_channel.get(channel, set())
            followers.discard(follower)
            if not followers:
                self._followers_by_channel.pop(channel, None)

    def from_memory(self, query: Query, base: int, limit: int | None) -> list[Changes] | None:
        """The pages of what came after the view of number *base*; None if that is no longer in memory, or too much.

        Followers that ask the same share them.
        """
        key = query, base, limit
        if key not in self._pages:
            wakes = [wake for wake in self._tail if wake.number > base]
            if not wakes or wakes[0].number != base + 1:
                return None
            n_entries = sum(_count(wake.found.get(channel)) for wake in wakes for channel in query.channels)
            if n_entries > MOST_AT_ONCE:
                return None
            self._pages[key] = self._made(query, wakes, limit)
        return self._pages[key]

    def _made(self, query: Query, wakes: Sequence[Wake], limit: int | None) -> list[Changes]:
        assert self.view is not None, "a wake ends at a view"
        snapshot, begin = self.view.snapshot, wakes[0].before
        scan = Scan(snapshot, begin.seqnos)
        for position, channel in enumerate(query.channels):
            for wake in wakes:
                if channel in wake.found:
                    scan.add_found(wake.found[channel], position)
        # Nothing up to `begin` was taken back since, or the wakes would have been forgotten.
        read = begin._replace(epochs=snapshot.epochs)
        return list(Pager(query, scan, NOTHING_READ).pages(read, limit))

    async def _run(self) -> None:
        try:
            await self._look_for_ever()
        except ChannelIndexError as error:
            self._end(error)
        except Exception as error:
            self._end(ChannelIndexError(f"the reader's hub failed: {type(error).__name__}: {error}"))
            raise

    def _end(self, error: ChannelIndexError) -> None:
        self.error = error
        self._has_view.set()
        for follower in self._followers():
            follower.lose()
        self._thread.shutdown(wait=False)

    async def _look_for_ever(self) -> None:
        counter: int | None = None
        patience = Patience()
        while True:
            await self._is_followed.wait()
            try:
                if counter is None:
                    now = await self._in_thread(self._store.stable_counter)
                else:
                    now = await self._in_thread(partial(self._store.wait_stable, counter, WAIT_S))
                    if now == counter:
                        continue
                self._late.clear()
                view, wake = await self._in_thread(partial(self._look, list(self._followers_by_channel)))
            except Transient as error:
                counter = None  # what the counter promised has not been read
                await asyncio.sleep(patience.pause_after(error))
                continue
            counter = now
            patience.reset()
            self._publish(view, wake)

    async def _in_thread(self, function: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def _look(self, channels: Sequence[str]) -> tuple[HubView, Wake | None]:
        """The view now, and what came to *channels* since the last one; None if that cannot be said. In a thread."""
        before, snapshot = self.view, self._snapshots.take()
        view = HubView(before.number + 1 if before else 0, snapshot)
        if before is None or before.snapshot.meta != snapshot.meta:
            return view, None
        try:
            if snapshot.resume(before.position).seqnos != before.position.seqnos:
                return view, None  # a rollback
            scans = ChannelScans(snapshot, before.position.seqnos, len(channels))
            walk(self._store, channels, scans)
        except (TokenAhead, IndexCorrupt, ChangesForgotten):
            return view, None  # whom it concerns will find it, too
        found = {channel: each for channel, each in zip(channels, scans.by_channel, strict=True) if each}
        return view, Wake(view.number, before.position, found, sum(map(_count, found.values())))

    def _publish(self, view: HubView, wake: Wake | None) -> None:
        self.view = view
        self._has_view.set()
        self._pages.clear()
        if wake is None:
            self._tail.clear()
            self._n_entries = 0
            for follower in self._followers():
                follower.lose()
            return
        self._tail.append(wake)
        self._n_entries += wake.n_entries
        while self._n_entries > self._tail_entries or len(self._tail) > MOST_WAKES:
            self._n_entries -= self._tail.popleft().n_entries
        for channel in wake.found:
            for follower in self._followers_by_channel.get(channel, ()):
                follower.notice(wake.number - 1)
        for follower in self._late:
            follower.lose()

    def _followers(self) -> Iterable[Follower]:
        return [follower for followers in self._followers_by_channel.values() for follower in followers]


def _count(found: FoundByVb | None) -> int:
    return sum(map(len, found.values())) if found else 0
