"""Watches an index during a run: what following readers are told, and where the stable clock is. It judges nothing."""

import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Self

from channelindex.errors import IndexCorrupt, IndexMissing, Transient
from channelindex.reading.changes_reader import ChangesReader
from channelindex.reading.paging import Changes
from channelindex.stores import open_reader
from channelindex.stores.base import IndexReader
from tests.chaos.http_follower import Followed, HttpFollower
from tests.chaos.raw_index import stable_in
from tests.chaos.raw_layouts import AWAY, layout_of
from tests.chaos.record import Reader, Record, StableSample, Told
from tests.chaos.watch import Watch
from tests.support.node import until
from tests.support.stores import settings_of

PAGE = 200
TURN_S = 0.05
"""Least time between two reads of a follower: it reads an active block whole, and the run needs the processor too."""
LOOK_S = 0.2
"""Longest time between two looks of a follower at a stable clock that does not move."""
SAMPLE_S = 0.1
RETRY_S = 0.2
STABLE_TIMEOUT_S = 1.0
"""For one look at the stable clock: a Redis that is stopped must not keep a follower from reading when it goes on."""
CATCH_UP_S = 120.0
"""How long the store may be away at the end: what is there must still be told."""


class Recorder:
    """Followers of the index in a store, each of one channel, and one look at the stable clock every SAMPLE_S seconds.

    A store that is away is waited out, and an index that is not there yet; so is damage, while *waits_for_repair* says
    so. Any other error ends a follower, and is raised by `finish`.
    """

    def __init__(
        self, store_url: str, index: str = "channels", waits_for_repair: Callable[[], bool] = lambda: False
    ) -> None:
        self._store_url = store_url
        self._index = index
        self._waits_for_repair = waits_for_repair
        self._followers: list[_Follower] = []
        self._http_followers: list[HttpFollower] = []
        self._sampler = _Sampler(StableClock(store_url, index))

    def follow(self, channel: str, pause_s: float = 0.0) -> Self:
        """Have one more reader of *channel*, which stops for *pause_s* seconds after each page."""
        name = f"reader {len(self._followers)} of {channel}"
        reader = open_reader(settings_of(self._store_url, self._index))
        clock = StableClock(self._store_url, self._index)
        self._followers.append(_Follower(Reader(name, channel), reader, clock, pause_s, self._waits_for_repair))
        return self

    def follow_over_http(self, followed: Followed, channel: str, feed: str) -> Self:
        """Have one more reader of *channel*, by a feed of a service."""
        name = f"{feed} reader {len(self._http_followers)} of {channel}"
        token = followed.new_token(channel)
        self._http_followers.append(HttpFollower(Reader(name, channel), followed.service, token, feed))
        return self

    def start(self) -> Self:
        """Begin to follow and to sample."""
        for thread in self._threads():
            thread.start()
        return self

    def stop(self) -> None:
        """Have everything read to the end of what is stable now, and stop. May be called twice."""
        for thread in self._threads():
            thread.stop_asked.set()
        for thread in self._threads():
            thread.join()

    def _threads(self) -> list[Watch]:
        return [*self._looking(), *self._http_followers]

    def _looking(self) -> list["_Looking"]:
        return [self._sampler, *self._followers]

    def await_read(self) -> None:
        """Wait until every follower has read to what is stable now, and the sampler has seen it."""
        wanted = [(thread, thread.n_turns + 2) for thread in self._looking()]  # the next look, whole, begins after now
        for thread, n_turns in wanted:
            until(partial(thread.has_turned, n_turns), f"{thread.name} to have looked")

    def told(self) -> list[Told]:
        """What readers were told so far."""
        return [told for follower in self._followers for told in list(follower.told)]

    def finish(self, record: Record) -> None:
        """Stop, and put everything into *record*.

        Raises:
            Exception: what ended a follower before its time. *record* has all that was seen.
        """
        self.stop()
        record.samples += self._sampler.samples
        followers: list[_Follower | HttpFollower] = [*self._followers, *self._http_followers]
        for follower in followers:
            record.readers.append(follower.reader)
            record.told += follower.told
        for thread in self._threads():
            if thread.problem:
                raise thread.problem


class StableClock:
    """The stable clock of an index, read without any code of the product. Not safe for threads."""

    def __init__(self, store_url: str, index: str = "channels") -> None:
        self._layout = layout_of(store_url, index, STABLE_TIMEOUT_S)
        self._shape: tuple[int, int] | None = None

    def read(self) -> tuple[int, ...] | None:
        """Seqno by vbucket; None where it cannot be read now."""
        try:
            self._shape = self._shape or self._find_shape()
            if self._shape is None:
                return None
            records = self._layout.checkpoints(*self._shape)
        except AWAY:
            self.close()
            return None
        if None in records:
            return None
        return tuple(seqno for record in records if record for seqno in stable_in(record))

    def close(self) -> None:
        """Let go of the connection."""
        self._layout.close()

    def _find_shape(self) -> tuple[int, int] | None:
        meta = self._layout.meta()
        return (meta["n_partitions"], meta["n_vbuckets"] // meta["n_partitions"]) if meta else None


class _Looking(Watch):
    """One that looks at the index again and again."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.n_turns = 0
        """Looks at the index so far, the present one counted or not; none at which the store was away."""

    def has_turned(self, n_turns: int) -> bool:
        """Whether it has come so far, or will not come any further."""
        return self.n_turns >= n_turns or not self.is_alive()


class _Sampler(_Looking):
    """Samples the stable clock; a sample that is like the one before is left out."""

    def __init__(self, clock: StableClock) -> None:
        super().__init__("sampler")
        self.samples: list[StableSample] = []
        self._clock = clock

    def watch(self) -> None:
        with closing(self._clock):
            while not self.stop_asked.wait(SAMPLE_S):
                stable = self._clock.read()
                if stable and (not self.samples or self.samples[-1].stable != stable):
                    self.samples.append(StableSample(time.monotonic(), stable))
                self.n_turns += stable is not None


class _Follower(_Looking):
    """Follows one channel by the product's reader."""

    def __init__(
        self,
        reader: Reader,
        store: IndexReader,
        clock: StableClock,
        pause_s: float,
        waits_for_repair: Callable[[], bool],
    ) -> None:
        super().__init__(reader.name)
        self._waits_for_repair = waits_for_repair
        self._since: str | None = None
        self.reader = reader
        self.told: list[Told] = []
        self._store = store
        self._clock = clock
        self._pause_s = pause_s
        self._last_turn: int | None = None
        """The turn that ends it, once it is asked to stop."""
        self._give_up_at = float("inf")

    def watch(self) -> None:
        with closing(self._store), closing(self._clock):
            self._await_index()
            reader = ChangesReader(self._store)
            while True:
                try:
                    return self._follow(reader)
                except IndexCorrupt:
                    if not self._waits_for_repair():
                        raise
                    self._stay_away(RETRY_S)

    def _follow(self, reader: ChangesReader) -> None:
        channels = [self.reader.channel]
        pages = reader.follow(channels, self._since, PAGE, stop=self._turn, wait_s=LOOK_S, sleep=self._stay_away)
        for page in pages:
            self._note(page)
            self._since = page.since
            self.stop_asked.wait(self._pause_s)

    def _turn(self) -> bool:
        """Whether to end: asked to, and a look, whole, began after that.

        It is the product's follower that looks. What read from our own token would be told more: that is of the last
        page with an entry, and the follower's own is further on.
        """
        self.n_turns += 1
        if self.stop_asked.wait(TURN_S) and self._last_turn is None:
            self._last_turn = self.n_turns + 1
            self._give_up_at = time.monotonic() + CATCH_UP_S
        return self._last_turn is not None and self.n_turns >= self._last_turn

    def _stay_away(self, seconds: float) -> None:
        self.n_turns -= 1
        assert time.monotonic() < self._give_up_at, "the store was away at the end, or damaged"
        time.sleep(seconds)

    def _await_index(self) -> None:
        while not self.stop_asked.is_set():
            try:
                self._store.meta()
            except (IndexMissing, Transient):
                self.stop_asked.wait(RETRY_S)
            else:
                return

    def _note(self, page: Changes) -> None:
        stable = self._clock.read()
        at = time.monotonic()  # last: a rollback that begins before the clock is read may show in it
        for each in page.entries:
            at_vb = stable[each.vb] if stable else -1
            self.told.append(
                Told(
                    self.reader.name,
                    at,
                    self.reader.channel,
                    each.id,
                    each.rev,
                    each.vb,
                    each.seqno,
                    each.removed,
                    each.deleted,
                    at_vb,
                    each.withdrawn,
                )
            )
