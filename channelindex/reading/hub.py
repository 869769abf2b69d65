"""Reads an index once per move of its stable clock, for all followers of a process. Belongs to one event loop.

One subscription waits. When the clock has moved, however often since the last look, one snapshot is taken and all
followed channels are read from where the hub was, each once, in one request. What was found is kept for a while, as
a *look*, apart by channel: a follower that is a few looks behind is answered from memory. Followers of channels
without news are not even woken.

A follower that is further behind, or joins, or lives through a rollback reads for itself, by its token and as of the
hub's snapshot: then it is where the hub is. So nobody is ever queued for, and what is in memory can be forgotten at any
time.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, TypeVar

from channelindex.errors import ChangesForgotten, ChannelIndexError, IndexCorrupt, ReaderClosed, TokenAhead, Transient
from channelindex.reading.at_rest import ChannelsAtRest
from channelindex.reading.block_walk import NOTHING_READ, walk
from channelindex.reading.paging import Changes, Pager
from channelindex.reading.patience import Patience
from channelindex.reading.query import Query
from channelindex.reading.scan import ChannelScans, FoundByVb, Scan
from channelindex.reading.since_token import Delivered, Token, encode, pack, packed_in
from channelindex.reading.snapshot import IndexSnapshot, Snapshots
from channelindex.stores.base import IndexReader

WAIT_S = 1.0
"""A wait for the stable clock; closing takes so long."""
KEPT_ENTRIES = 100_000
"""Entries kept in memory, some 300 bytes each."""
MOST_AT_ONCE = 5_000
"""Entries that one answer takes from memory. It is made on the event loop: more would hold up everybody else."""

MOST_LOOKS = 200
"""Looks kept in memory; each has a clock of its own."""
DELIVERED_AT_ONCE = 250
"""Followers of one channel that get their news before anybody else has a turn on the event loop."""
LONG_LOOK_S = 0.01
LONGEST_PAUSE_S = 0.1
"""After a look longer than LONG_LOOK_S, the store and everybody else have as long for themselves, up to this."""
LINGER_S = 5.0
"""A channel is looked at for so long after its last follower left: who asks again and again comes back at once."""

Result = TypeVar("Result")


class HubView(NamedTuple):
    """The moment at which the hub is; `at` is when it looked, monotonic."""

    number: int
    snapshot: IndexSnapshot
    at: float

    @property
    def position(self) -> Token:
        """The token of who is there, too."""
        return self.snapshot.position

    @property
    def progress(self) -> int:
        """`Changes.progress` of who is there, too."""
        return sum(self.snapshot.stable)


class Kept(NamedTuple):
    """Pages from memory, after the token *begin*; `seen_at`, monotonic, is when the hub saw the last of it."""

    begin: str
    pages: list[Changes]
    seen_at: float


class Look(NamedTuple):
    """The entries that came from *before* on, up to the view of *number*, by channel."""

    number: int
    before: Token
    packed_before: bytes
    found: dict[str, FoundByVb]
    n_entries: int


class Follower:
    """A follower's place. With `has_news`, it is to be sent what came after the view of number `base`.

    Without a `base`, it has to read by its token. Without news, nothing came up to the hub's view.
    One that `is_elsewhere`, because it read after the hub looked, reads by its token: it knows some of the news.
    While it waits with a `deliver`, that is called with the news in memory; where it returns false, the follower wakes.
    """

    __slots__ = ("_waiter", "base", "channels", "deliver", "has_news", "is_elsewhere")

    def __init__(self, channels: tuple[str, ...]) -> None:
        self.channels = channels
        self.base: int | None = None
        self.is_elsewhere = False
        self.has_news = True
        self.deliver: Callable[[int], bool] | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def wait(self) -> None:
        """Wait until there is news."""
        if not self.has_news:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def notice(self, base: int) -> bool:
        """There is news after the view of number *base*; true if `deliver_now` is to be called for it."""
        if self.has_news or self.base is not None:
            return False
        self.base = None if self.is_elsewhere else base
        if self.deliver is not None and self.base is not None:
            return True
        self._wake()
        return False

    def deliver_now(self) -> None:
        """Deliver what is in memory, if it still waits; else it wakes, and fetches its news."""
        if self.base is None or self.has_news:
            return
        if self.deliver is not None and self.deliver(self.base):
            self.base = None
        else:
            self._wake()

    def has_read(self, *, is_elsewhere: bool) -> None:
        """It has read up to a view of the hub, or *is_elsewhere*; news that came meanwhile is delivered from there."""
        self.is_elsewhere = is_elsewhere
        if is_elsewhere and self.base is not None:
            self.lose()

    def lose(self) -> None:
        """Its place is no longer known to the hub."""
        self.base = None
        self._wake()

    def _wake(self) -> None:
        self.has_news = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Hub:
    """See the module. *store* is asked from threads; *kept_entries* is how many entries are kept."""

    def __init__(self, store: IndexReader, kept_entries: int = KEPT_ENTRIES) -> None:
        self._store = store
        self._snapshots: tuple[IndexReader, Snapshots] = store, Snapshots(store)
        self._kept_entries = kept_entries
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="channelindex-hub")
        self._task: asyncio.Task[None] | None = None
        self._followers_by_channel: dict[str, set[Follower]] = {}
        self._n_followers = 0
        self._late: set[Follower] = set()  # joined while the followed channels were being read
        self._lingering: dict[str, float] = {}  # channel -> until when it is looked at without a follower
        self._covered_from: dict[str, int] = {}  # channel -> view from which on all looks have it
        self._number_by_position: dict[bytes, int] = {}  # of the views that the looks in memory began at, and this one
        self._looks: deque[Look] = deque()
        self._n_entries = 0
        self._pages: dict[tuple[Query, int, Delivered, int | None], Kept] = {}
        self._to_tell: deque[Follower] = deque()
        self._rest = ChannelsAtRest(store)
        self._is_fresh = asyncio.Event()  # the view is no older than the last wait for the stable clock
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

    @property
    def is_fresh(self) -> bool:
        """True if the view is as of now: it is not while nobody follows."""
        return self._is_fresh.is_set() and self.error is None

    async def fresh(self) -> HubView:
        """The newest view, as soon as there is one that is as of now.

        Raises:
            ChannelIndexError: why the hub has ended.
        """
        await self._is_fresh.wait()
        if self.error is not None:
            raise self.error
        assert self.view is not None, "what ends the hub is an error"
        return self.view

    def join(self, channels: tuple[str, ...]) -> Follower:
        """A follower of *channels*, that begins by its token."""
        follower = Follower(channels)
        for channel in channels:
            self._followers_by_channel.setdefault(channel, set()).add(follower)
            self._lingering.pop(channel, None)
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
            if not followers and self._followers_by_channel.pop(channel, None) is not None:
                self._lingering[channel] = time.monotonic() + LINGER_S

    def settle(self, follower: Follower, query: Query, since: str) -> bool:
        """Put *follower* where the token *since* is, if it is of a view that is in memory; then it need not read.

        True if it is up to date, so that it has to wait.
        """
        if self.view is None:
            return False
        packed = packed_in(since, self.view.snapshot.meta, query.asked)
        number = self._number_by_position.get(packed) if packed else None
        if number == self.view.number:
            follower.has_news, follower.base = False, None
            return True
        if number is not None and all(self._covered_from.get(each, number + 1) <= number for each in query.channels):
            follower.base = number
        return False

    def from_memory(self, query: Query, base: int, delivered: Delivered, limit: int | None) -> Kept | None:
        """The pages of what came after the view of number *base*; None if that is no longer in memory, or too much.

        *delivered* is of the token of who is at *base*. Followers that ask the same share them.
        """
        key = query, base, delivered, limit
        if key not in self._pages:
            looks = [look for look in self._looks if look.number > base]
            if not looks or looks[0].number != base + 1:
                return None
            n_entries = sum(_count(look.found.get(channel)) for look in looks for channel in query.channels)
            if n_entries > MOST_AT_ONCE:
                return None
            self._pages[key] = self._made(query, looks, delivered, limit)
        return self._pages[key]

    def _made(self, query: Query, looks: Sequence[Look], delivered: Delivered, limit: int | None) -> Kept:
        assert self.view is not None, "a look ends at a view"
        snapshot, begin = self.view.snapshot, looks[0].before._replace(delivered=delivered)
        scan = Scan(snapshot, begin.seqnos)
        for position, channel in enumerate(query.channels):
            for look in looks:
                if channel in look.found:
                    scan.add_found(look.found[channel], position)
        # Nothing up to `begin` was taken back since, or the looks would have been forgotten.
        read = begin._replace(epochs=snapshot.epochs)
        pages = list(Pager(query, scan, NOTHING_READ).pages(read, limit))
        return Kept(encode(begin, snapshot.meta, query.asked), pages, self.view.at)

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
        self._is_fresh.set()
        for follower in self._followers():
            follower.lose()
        self._thread.submit(self._rest.close)
        self._thread.shutdown(wait=False)

    async def _look_for_ever(self) -> None:
        counter: int | None = None
        patience = Patience()
        while True:
            if not self._is_followed.is_set():
                self._is_fresh.clear()
                await self._await_followers()
            try:
                if counter is None or not self._is_fresh.is_set():
                    now = await self._in_thread(self._store.stable_counter)
                else:
                    now = await self._in_thread(partial(self._store.wait_stable, counter, WAIT_S))
                if now == counter:
                    self._is_fresh.set()
                    continue
                self._late.clear()
                channels = self._looked_at()
                view, look = await self._in_thread(partial(self._look, channels, now))
            except Transient as error:
                counter = None  # what the counter promised has not been read
                await asyncio.sleep(patience.pause_after(error))
                continue
            counter = now
            patience.reset()
            self._publish(view, look, channels)
            took_s = time.monotonic() - view.at
            if took_s > LONG_LOOK_S:
                await asyncio.sleep(min(took_s, LONGEST_PAUSE_S))

    async def _await_followers(self) -> None:
        """Wait until somebody follows; the store need not watch anything meanwhile, if that takes longer."""
        try:
            async with asyncio.timeout(LINGER_S):
                await self._is_followed.wait()
        except TimeoutError:
            await self._in_thread(self._rest.close)
            await self._is_followed.wait()

    def _looked_at(self) -> list[str]:
        """The channels that are followed, or were a moment ago."""
        now = time.monotonic()
        self._lingering = {channel: end for channel, end in self._lingering.items() if end > now}
        return [*self._followers_by_channel, *self._lingering]

    async def _in_thread(self, function: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def _look(self, channels: Sequence[str], counter: int) -> tuple[HubView, Look | None]:
        """The view now, and what came to *channels* since the last one; None if that cannot be said. In a thread.

        *counter* is the stable counter that was seen; the view is no older.
        """
        at = time.monotonic()
        store = self._rest.begin()
        before, snapshot = self.view, self._snapshot_of(store)
        view = HubView(before.number + 1 if before else 0, snapshot, at)
        if before is not None and before.snapshot.epochs != snapshot.epochs:
            self._rest.forget()  # what is visible changes with an epoch, and without a trace in any channel
        if before is None or before.snapshot.meta != snapshot.meta:
            return view, None
        try:
            if snapshot.resume(before.position).seqnos != before.position.seqnos:
                return view, None  # a rollback
            changed = self._rest.awake(channels, counter)
            states = store.channel_states(changed)
            scans = ChannelScans(snapshot, before.position.seqnos, len(changed))
            walk(store, changed, scans, states=states)
            self._rest.note(changed, states, snapshot)
        except (TokenAhead, IndexCorrupt, ChangesForgotten):
            return view, None  # whom it concerns will find it, too
        found = {channel: each for channel, each in zip(changed, scans.by_channel, strict=True) if each}
        pack(view.position)  # here, in a thread, and not where all wait for it
        n_entries = sum(map(_count, found.values()))
        return view, Look(view.number, before.position, pack(before.position), found, n_entries)

    def _snapshot_of(self, store: IndexReader) -> IndexSnapshot:
        """A snapshot of *store*; what is remembered for that is as long as it is the same."""
        if self._snapshots[0] is not store:
            self._snapshots = store, Snapshots(store)
        return self._snapshots[1].take()

    def _publish(self, view: HubView, look: Look | None, channels: Sequence[str]) -> None:
        self.view = view
        self._is_fresh.set()
        self._pages.clear()
        packed = pack(view.position)
        if look is None:
            self._rest.forget()  # what was visible when they were noted may have to become so again
            self._looks.clear()
            self._n_entries = 0
            self._covered_from.clear()
            self._number_by_position = {packed: view.number}
            for follower in self._followers():
                follower.lose()
            return
        covered = self._covered_from
        self._covered_from = {channel: covered.get(channel, look.number - 1) for channel in channels}
        self._number_by_position[packed] = view.number
        self._looks.append(look)
        self._n_entries += look.n_entries
        while self._n_entries > self._kept_entries or len(self._looks) > MOST_LOOKS:
            forgotten = self._looks.popleft()
            self._n_entries -= forgotten.n_entries
            self._number_by_position.pop(forgotten.packed_before, None)
        is_telling = bool(self._to_tell)
        for channel in look.found:
            for follower in self._followers_by_channel.get(channel, ()):
                if follower.notice(look.number - 1):
                    self._to_tell.append(follower)
        if not is_telling:
            self._tell_some()
        for follower in self._late:
            if not all(channel in self._covered_from for channel in follower.channels):
                follower.lose()

    def _tell_some(self) -> None:
        """Deliver to the next followers from memory; to the others after whoever waits for the event loop."""
        for _ in range(min(DELIVERED_AT_ONCE, len(self._to_tell))):
            self._to_tell.popleft().deliver_now()
        if self._to_tell:
            asyncio.get_running_loop().call_soon(self._tell_some)

    def _followers(self) -> Iterable[Follower]:
        return [follower for followers in self._followers_by_channel.values() for follower in followers]


def position(view: HubView, query: Query, delivered: Delivered = Delivered.NOTHING) -> str:
    """The token of who asks for *query* and has read all that is visible in *view*; *delivered*: see `Token`."""
    return encode(view.position._replace(delivered=delivered), view.snapshot.meta, query.asked)


def _count(found: FoundByVb | None) -> int:
    return sum(map(len, found.values())) if found else 0
