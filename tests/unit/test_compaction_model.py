"""An index that is compacted while owners come, go, come back and roll back: followers are told the same.

`IndexMachine` is the world and the oracle (`test_reader_model.py`). Here, compactors of any age of view work on it at
any point: they are killed before or after any request, they meet each other, and readers are in the middle of an
answer when directories are switched and blocks go without grace.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule, run_state_machine_as_test

from channelindex import epochs
from channelindex.compaction import channel as compaction_channel
from channelindex.compaction import due
from channelindex.compaction.compactor import Compactor
from channelindex.compaction.due import Extent
from channelindex.compaction.judge import Judge
from channelindex.compaction.packing import pack_group
from channelindex.compaction.view import PRUNED_AFTER_S, CompactionView
from channelindex.errors import ChannelIndexError
from channelindex.reading import block_walk
from channelindex.reading.changes_reader import ChangesReader
from channelindex.reading.snapshot import History, IndexSnapshot
from channelindex.settings import CompactionSettings
from channelindex.stores.redis import compaction as redis_compaction
from tests.support.profiles import examples
from tests.unit.test_reader_model import CHANNEL_SETS, CHANNELS, PARTITIONS, VBUCKETS, IndexMachine

MIN_LAG_S = 10.0
SETTINGS = CompactionSettings(min_lag_s=MIN_LAG_S, dead_retention_s=30.0, grace_s=0.0)
BLOCK_BYTES = 90


class Killed(Exception):
    """The compactor's process ends here."""


class Mortal:
    """A store's operations; the one of number *dies_at* is the last, and happens only with *happens*."""

    def __init__(self, store: Any, dies_at: int, *, happens: bool) -> None:
        self._store = store
        self._dies_at = dies_at
        self._happens = happens

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._store, name)
        if not callable(operation):
            return operation

        def call(*arguments: Any) -> Any:
            self._dies_at -= 1
            if self._dies_at == 0:
                if self._happens:
                    operation(*arguments)
                raise Killed
            return operation(*arguments)

        return call


class Interrupted:
    """A store's reader; before the call of number *at* something else happens once."""

    def __init__(self, store: Any, at: int, hook: Callable[[], None]) -> None:
        self._store = store
        self._at = at
        self._hook = hook

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        def call(*arguments: Any) -> Any:
            self._at -= 1
            if self._at == 0:
                self._hook()
            return method(*arguments)

        return call


class CompactedIndexMachine(IndexMachine):
    """See the module."""

    may_forget_dead = True

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1_000_000.0
        self.store = self.index.compaction()
        self.compactors = [self._new_compactor(self.store) for _ in range(2)]

    def _new_compactor(self, store: Any, reader: Any = None) -> Compactor:
        return Compactor(store, reader or self.index.reader, SETTINGS, BLOCK_BYTES, clock=lambda: self.now_s)

    @rule(seconds=st.sampled_from([1.0, 5.0, 20.0, 100.0, 400.0]))
    def time_passes(self, seconds):
        for partition in PARTITIONS:
            owner = self.owners[partition]
            owner.store.note_moments(owner.epoch, [partition], self.now_s)
        self.now_s += seconds

    @rule(vb=st.sampled_from(VBUCKETS), number=st.integers(0, 1), n=st.integers(2, 5), channels=CHANNEL_SETS)
    def a_document_changes_often_and_settles(self, vb, number, n, channels):
        for _ in range(n):
            self.change(vb, number, channels, 1)
        self.catch_up(vb)
        self.time_passes(20.0)

    @rule(vb=st.sampled_from(VBUCKETS), keep=st.floats(0, 1), channel=st.sampled_from(CHANNELS))
    def what_was_compacted_is_rolled_back(self, vb, keep, channel):
        self._new_compactor(self.store).compact(channel)
        self.fail_over(vb, keep)
        self.catch_up(vb)

    @rule(
        channel=st.sampled_from(CHANNELS),
        extent=st.sampled_from(Extent),
        which=st.integers(0, 1),
        most=st.sampled_from([2, due.MOST_SWITCHED]),
    )
    def compact(self, channel, extent, which, most):
        """One whose view may be 300 seconds old, and that may take in no more than *most* groups."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(due, "MOST_SWITCHED", most)
            patch.setattr(compaction_channel, "MOST_SWITCHED", most)
            self.compactors[which].compact(channel, extent)

    @rule(channel=st.sampled_from(CHANNELS))
    def everything_settles_and_is_compacted(self, channel):
        self.time_passes(60.0)
        self._new_compactor(self.store).compact(channel)

    @rule(channel=st.sampled_from(CHANNELS), dies_at=st.integers(1, 6), happens=st.booleans())
    def compact_until_killed(self, channel, dies_at, happens):
        with contextlib.suppress(Killed):
            self._new_compactor(Mortal(self.store, dies_at, happens=happens)).compact(channel)

    @rule(
        channel=st.sampled_from(CHANNELS),
        at=st.integers(1, 9),
        vb=st.sampled_from(VBUCKETS),
        keep=st.floats(0, 1),
        what=st.sampled_from(["compact", "roll back", "take over", "write"]),
    )
    def compact_while_something_happens(self, channel, at, vb, keep, what):
        def hook():
            if what == "compact":
                self._new_compactor(self.store).compact(channel)
            elif what == "roll back":
                self.fail_over(vb, keep)
                self.catch_up(vb)
            elif what == "take over":
                self.take_over((vb // self.index.meta.partition_width,))
                self.catch_up(vb)
            else:
                self.catch_up(vb)
                self.write_as_zombie(0, 6)

        self._new_compactor(self.store, Interrupted(self.index.reader, at, hook)).compact(channel)

    @rule(vb=st.sampled_from(VBUCKETS), number=st.integers(0, 3), keep=st.floats(0, 1))
    def starts_are_pruned(self, vb, number, keep):
        """Something is taken back, its start goes to the archive, and nobody is in the midst of a request so long."""
        self.change(vb, number, ("A",), 1)
        self.receive(vb, 100)
        self.flush(self.owner_of(vb), 100)
        self.fail_over(vb, keep)
        for _ in range(3):
            self.change(vb, (number + 1) % 4, ("B",), 1)
            self.catch_up(vb)
            self.time_passes(5.0)
            self.take_over(self.owner_of(vb).partitions)
        self.time_passes(1.1 * PRUNED_AFTER_S)
        self.zombies.clear()
        self._new_compactor(self.store).prune(self.index.reader.channels, 1)

    @rule(channels=st.sampled_from([("A",), ("B", "C"), CHANNELS]), at=st.integers(1, 7), n=st.integers(1, 3))
    def read_while_it_is_compacted(self, channels, at, n):
        """From the beginning: the oracle is that of the moment at which the reader began."""

        def hook():
            self.time_passes(20.0)
            for _ in range(n):
                for channel in channels:
                    self._new_compactor(self.store).compact(channel)

        expected = self.expected(channels)
        reader = ChangesReader(Interrupted(self.index.reader, at, hook))
        told = {entry.id: (entry.seqno, entry.rev) for entry in reader.changes(channels).entries}
        assert told == {key: (entry.seqno, entry.rev) for key, entry in expected.items()}

    @invariant()
    def directories_name_what_is_there(self):
        for channel in CHANNELS:
            (state,) = self.index.reader.channel_states([channel])
            if state is not None:
                assert all(group.tail is not None for group in state.groups.values())


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    """Two epoch starts in a record, the others in the archive; two blocks in each script of a switch in Redis."""
    monkeypatch.setattr(redis_compaction, "_SWITCHED_AT_ONCE", 2)
    monkeypatch.setattr(epochs, "HISTORY_BYTES", 2 * 8 * (1 + len(VBUCKETS) // len(PARTITIONS)))


def _run(machine: type[CompactedIndexMachine], share: float) -> None:
    run_state_machine_as_test(machine, settings=settings(max_examples=examples(share), stateful_step_count=40))


@pytest.mark.hypothesis
def test_followers_of_a_compacted_index_receive_what_the_bucket_says_in_memory():
    _run(CompactedIndexMachine, share=1.0)


@pytest.mark.hypothesis
def test_followers_of_a_compacted_index_receive_what_the_bucket_says_in_redis(redis_url):
    class InRedis(CompactedIndexMachine):
        url = redis_url

    _run(InRedis, share=0.1)


@pytest.mark.hypothesis
def test_followers_of_a_compacted_index_receive_what_the_bucket_says_in_a_cluster(cluster_url):
    class InCluster(CompactedIndexMachine):
        url = cluster_url

    _run(InCluster, share=0.05)


@pytest.mark.hypothesis
def test_followers_of_a_compacted_index_receive_what_the_bucket_says_in_a_bucket(couchbase_url):
    class InBucket(CompactedIndexMachine):
        url = couchbase_url

    _run(InBucket, share=0.05)


def _break_the_fence(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(CompactionView, "fence", lambda *_: None)


def _rewrite_under_a_newer_epoch(patch: pytest.MonkeyPatch) -> None:
    def pack(kept, epoch, *arguments, **options):
        return pack_group([(seqno, vb, epoch, raw) for seqno, vb, _, raw in kept], epoch, *arguments, **options)

    patch.setattr(compaction_channel, "pack_group", pack)


def _compact_active_blocks_of_present_epochs(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(compaction_channel, "is_removable", lambda *_: True)


def _let_what_is_not_settled_supersede(patch: pytest.MonkeyPatch) -> None:
    computed = Judge._computed

    def of_live(self, epoch):
        limits = computed(self, epoch)
        return limits._replace(settled=limits.live)

    patch.setattr(Judge, "_computed", of_live)


def _take_a_block_that_is_gone_for_damage(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(block_walk._Walk, "_is_compacted", lambda *_: False)


def _go_back_below_what_was_compacted(patch: pytest.MonkeyPatch) -> None:
    begin = epochs.begin

    def heedless(record, *arguments, **options):
        return begin(record._replace(compacted_through=()), *arguments, **options)

    patch.setattr(epochs, "begin", heedless)


def _refuse_tokens_while_it_is_streamed_anew(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(IndexSnapshot, "_kept", lambda self, vb: self.stable[vb])


def _prune_while_something_dead_is_left(patch: pytest.MonkeyPatch) -> None:
    compact = compaction_channel.ChannelCompactor.compact

    def lax(*arguments, all_dead=False, **options):
        return compact(*arguments, **options)._replace(long_dead_left=0)

    patch.setattr(compaction_channel.ChannelCompactor, "compact", lax)


def _trust_positions_of_pruned_epochs(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(History, "position_bounds", lambda self, epoch, partition: self._bounds[partition].of(epoch))


@pytest.mark.nightly
@pytest.mark.parametrize(
    "plant",
    [
        _prune_while_something_dead_is_left,
        _trust_positions_of_pruned_epochs,
        _break_the_fence,
        _rewrite_under_a_newer_epoch,
        _compact_active_blocks_of_present_epochs,
        _let_what_is_not_settled_supersede,
        _take_a_block_that_is_gone_for_damage,
        _go_back_below_what_was_compacted,
        _refuse_tokens_while_it_is_streamed_anew,
    ],
)
def test_each_rule_that_is_broken_is_found(plant, monkeypatch):
    plant(monkeypatch)
    with pytest.raises((AssertionError, ChannelIndexError)):
        run_state_machine_as_test(
            CompactedIndexMachine,
            settings=settings(
                max_examples=1000,
                stateful_step_count=50,
                phases=[Phase.generate],  # found is enough
                suppress_health_check=list(HealthCheck),
                derandomize=True,
                database=None,
            ),
        )
