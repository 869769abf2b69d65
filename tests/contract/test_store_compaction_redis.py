"""Redis' half of compaction alone: large channels, whose blocks are switched a part at a time, here two.

Whatever a compactor that dies, another one, or a loss of the newest writes does between any two requests: nothing that
a directory names is gone, or has a time to live, and nothing else is without one once that was swept.
"""

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from itertools import count
from typing import Any, NamedTuple

import pytest
import redis

from channelindex.compaction.channel import ChannelResult
from channelindex.compaction.compactor import Compactor
from channelindex.errors import IndexCorrupt
from channelindex.reading.changes_reader import ChangesReader
from channelindex.settings import CompactionSettings
from channelindex.stores.base import BlockRef
from channelindex.stores.compacting import STRAY_S, Switch
from channelindex.stores.redis import channel_repair
from channelindex.stores.redis import compaction as redis_compaction
from channelindex.stores.redis.keys import Keys
from tests.support.stores import GROUP, META, Backend, append, checkpoints, entry

SETTINGS = CompactionSettings(min_lag_s=1.0, dead_retention_s=1.0, grace_s=60.0)
BLOCK_BYTES = 20
"""Less than an entry has, so each has a block of its own."""
N_DOCUMENTS = 6
NOW_S = 1_000_000.0
TOLD = {f"doc-{number}": 10 + number for number in range(N_DOCUMENTS)}


class _Dies(Exception):
    """The compactor's process ends here."""


def _nothing(_number: int) -> None:
    pass


def _dies_at(last: int) -> Callable[[int], None]:
    def die(number: int) -> None:
        if number == last:
            raise _Dies

    return die


class Index(NamedTuple):
    """An index in which channel A has two revisions of each document, each in a block, under an epoch that is over."""

    backend: Backend
    client: redis.Redis
    keys: Keys

    def compact(
        self, before: Callable[[int], None], after: Callable[[int], None] = _nothing, block_bytes: int = BLOCK_BYTES
    ) -> ChannelResult:
        """Compact the channel; *before* and *after* each request that changes something, they are told its number."""
        store, numbers = self.backend.compaction(), count(1)
        compactor = Compactor(store, self.backend.reader(), SETTINGS, block_bytes, clock=lambda: NOW_S)

        def counted(call: Callable[..., Any]) -> Callable[..., Any]:
            def request(*arguments: Any) -> Any:
                if call == link_pipeline and arguments[0][0][0] not in ("SET", "UNLINK"):
                    return call(*arguments)
                number = next(numbers)
                before(number)
                reply = call(*arguments)
                after(number)
                return reply

            return request

        link: Any = store._link  # type: ignore[attr-defined]
        link_pipeline = link.pipeline
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(link, "run", counted(link.run))
            patch.setattr(link, "pipeline", counted(link.pipeline))
            return compactor.compact("A")

    def told(self) -> dict[str, int]:
        return {change.id: change.seqno for change in ChangesReader(self.backend.reader()).changes(["A"]).entries}

    def sweep(self) -> None:
        """Look for what is due as a node does, when whoever was at work must have ended."""
        compactor = Compactor(
            self.backend.compaction(), self.backend.reader(), SETTINGS, BLOCK_BYTES, clock=lambda: NOW_S + 2 * STRAY_S
        )
        compactor.find_due(["A"], tidies=True)

    def blocks(self) -> tuple[set[BlockRef], set[BlockRef], set[BlockRef]]:
        """The blocks that the directory names, and of those that are there the ones for good, and with an end."""
        (state,) = self.backend.reader().channel_states(["A"])
        assert state
        named = {
            BlockRef("A", name, number)
            for name, group in state.groups.items()
            for number in range(group.directory.first, group.directory.number + 1)
        }
        lasting, ending = set[BlockRef](), set[BlockRef]()
        for key in self.client.scan_iter(self.keys.blocks_pattern(), count=1000):
            ref = self.keys.block_of(key)
            assert ref
            (lasting if self.client.pttl(key) == -1 else ending).add(ref)
        return named, lasting, ending

    def check(self) -> None:
        """All that is named is there for good; and once it was swept, nothing else is."""
        named, lasting, _ = self.blocks()
        assert named <= lasting
        assert self.told() == TOLD
        self.sweep()
        named, lasting, _ = self.blocks()
        assert named == lasting
        assert self.told() == TOLD


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr(redis_compaction, "_SWITCHED_AT_ONCE", 2)
    monkeypatch.setattr(redis_compaction, "_BLOCKS_AT_ONCE", 3)


@contextmanager
def _index(url: str) -> Iterator[Index]:
    backend = Backend(url, f"compact-{uuid.uuid4().hex}")
    owner, writer = backend.owner(), backend.writer(block_bytes=BLOCK_BYTES)
    owner.create_or_check(META)
    owner.begin(0, 1, "n1")
    for revision in range(2):
        for number in range(N_DOCUMENTS):
            seqno = 10 * revision + number
            writer.write([append("A", 1, entry(0, seqno, f"doc-{number}", f"{revision + 1}-x"))])
    owner.advance(1, checkpoints({0: 20}))
    owner.note_moments(1, [0], 1000.0)
    owner.begin(0, 2, "n2")
    with redis.Redis.from_url(url) as client:
        yield Index(backend, client, Keys(backend.index_name))
    backend.close()


def _requests(url: str) -> int:
    """How many requests change something in a compaction that nobody disturbs."""
    numbers: list[int] = []
    with _index(url) as index:
        result = index.compact(numbers.append)
        assert result.outcome == "compacted"
        assert result.blocks_after >= N_DOCUMENTS, "more than two parts"
        named, lasting, ending = index.blocks()
        assert named == lasting
        assert len(ending) == 2 * N_DOCUMENTS, "what it read is in its grace"
        assert index.backend.compaction().sizes(["A"])[0].unswept_at is None  # type: ignore[union-attr]
        index.check()
    return numbers[-1]


@pytest.mark.parametrize("happens", [False, True])
def test_what_a_compactor_leaves_that_dies_at_any_request_is_swept(redis_url, happens):
    for last in range(1, _requests(redis_url) + 1):
        with _index(redis_url) as index:
            with suppress(_Dies):
                index.compact(*((_nothing, _dies_at(last)) if happens else (_dies_at(last),)))
            index.check()
            assert index.compact(_nothing).outcome in ("compacted", "unchanged")
            index.check()


@pytest.mark.parametrize("block_bytes", [BLOCK_BYTES, 10_000])
def test_who_finds_a_channel_half_done_goes_on_with_it(redis_url, block_bytes):
    """What waits to be named may belong to somebody who is alive; that holds nobody up."""
    for last in range(1, _requests(redis_url) + 1):
        with _index(redis_url) as index:
            with suppress(_Dies):
                index.compact(_dies_at(last))
            assert index.compact(_nothing, block_bytes=block_bytes).outcome in ("compacted", "unchanged")
            (sizes,) = index.backend.compaction().sizes(["A"])
            assert sizes
            assert sizes.unswept_at is None
            index.check()


@pytest.mark.parametrize("sweeps", [False, True])
def test_two_compactors_with_one_between_any_two_requests_of_the_other_do_no_harm(redis_url, sweeps):
    for at in range(1, _requests(redis_url) + 1):
        with _index(redis_url) as index:
            others = _Other(index, at, sweeps=sweeps)
            outcome = index.compact(others).outcome
            assert "compacted" in (outcome, *others.outcomes) or (sweeps and outcome == "refused")
            index.check()


class _Other:
    """Another compactor, that comes before request number *at*, to compact or to sweep."""

    def __init__(self, index: Index, at: int, *, sweeps: bool) -> None:
        self._index = index
        self._at = at
        self._sweeps = sweeps
        self.outcomes: list[str] = []

    def __call__(self, number: int) -> None:
        if number == self._at and self._sweeps:
            self._index.sweep()
        elif number == self._at:
            self.outcomes.append(self._index.compact(_nothing).outcome)


@pytest.mark.parametrize("n_lost", [1, 2, 3, 5])
def test_what_is_lost_between_any_two_requests_is_never_taken_for_there(redis_url, n_lost):
    for at in range(2, _requests(redis_url) + 1):
        with _index(redis_url) as index:
            index.compact(_Loss(index, at, n_lost))
            index.check()


class _Loss:
    """The store, which before request number *at* is again as it was before the last so many.

    The compactor goes on, as if nobody had told it which server that is.
    """

    def __init__(self, index: Index, at: int, n_lost: int) -> None:
        self._index = index
        self._at = at
        self._n_lost = n_lost
        self._saved: list[list[tuple[bytes, Any, int]]] = []

    def __call__(self, number: int) -> None:
        client, pattern = self._index.client, self._index.keys.all_pattern()
        names = list(client.scan_iter(pattern, count=1000))
        self._saved.append([(name, client.dump(name), int(client.pttl(name))) for name in names])
        if number == self._at:
            client.delete(*names)
            for name, value, ms in self._saved[max(0, number - 1 - self._n_lost)]:
                client.restore(name, max(0, ms), value)


def test_what_waits_to_be_named_belongs_to_nobody_for_who_repairs(redis_url):
    """Nor does what a switch left: to put these groups back would tell of what has left."""
    for last in range(1, _requests(redis_url) + 1):
        with _index(redis_url) as index:
            with suppress(_Dies):
                index.compact(_dies_at(last))
            named, _, _ = index.blocks()
            index.backend.owner().repair_channels(None, b"")
            assert index.blocks()[0] == named
            index.check()


@pytest.mark.parametrize("block_bytes", [BLOCK_BYTES, 10_000])
def test_a_directory_that_is_lost_meanwhile_is_damage_and_nothing_is_put_in_its_place(redis_url, block_bytes):
    """A present epoch may write on to a block that no directory names any more: readers must not miss that unawares."""
    for at in range(1, _requests(redis_url) + 1):
        with _index(redis_url) as index:
            lost: list[int] = []

            def lose(number: int, at: int = at, index: Index = index, lost: list[int] = lost) -> None:
                if number == at:
                    lost.append(index.client.delete(index.keys.channel("A")))

            with suppress(IndexCorrupt):  # it is seen at once by who has not read the directory yet
                assert (index.compact(lose, block_bytes=block_bytes).outcome == "compacted") or lost
            index.sweep()
            with pytest.raises(IndexCorrupt) if lost else nullcontext():
                assert index.told() == TOLD


def test_a_garbled_directory_holds_up_no_other_channel(redis_url):
    with _index(redis_url) as index:
        index.backend.writer().write([append("B", 2, entry(0, 30))])
        index.client.hset(index.keys.channel("B"), f"g{GROUP}", b"7")
        compactor = Compactor(
            index.backend.compaction(), index.backend.reader(), SETTINGS, BLOCK_BYTES, clock=lambda: NOW_S
        )
        found = [due.channel for due in compactor.find_due(["A", "B", "none"], tidies=True)]
        assert found == ["A", "B"]
        assert compactor.seen.n_channels == 2
        outcomes = [(compactor.is_due(channel), compactor.compact(channel).outcome) for channel in found]
        assert outcomes == [(True, "compacted"), (True, "damaged")]
        assert index.told() == TOLD


def test_what_is_noted_of_a_channel_whose_directory_was_lost_is_not_taken_for_the_channel(redis_url):
    with _index(redis_url) as index:
        index.client.delete(index.keys.channel("A"))
        switch = Switch("A", 0, (), None, 1, 1, b"", 60)
        assert not index.backend.compaction().switch(switch)
        with pytest.raises(IndexCorrupt):
            index.told()


def test_what_becomes_pending_while_somebody_repairs_is_not_put_back(redis_url, monkeypatch):
    """It was seen with a time to live; nobody's it is still, and a directory that names it would name what ends."""
    mend = channel_repair._mend_group
    with _index(redis_url) as index:
        ref = min(index.blocks()[0])
        block: Any = index.client.get(index.keys.block(*ref))
        store: Any = index.backend.compaction()
        store.write_blocks("A", "compact-0", 0, [block, block])

        def become_pending_and_mend(*arguments: Any) -> Any:
            store._run_on("keep", "A", (0, int(NOW_S), "compact-0", 0, [len(block)] * 2))
            return mend(*arguments)

        monkeypatch.setattr(channel_repair, "_mend_group", become_pending_and_mend)
        named = index.blocks()[0]
        index.backend.owner().repair_channels()
        assert index.blocks()[0] == named
        index.check()
