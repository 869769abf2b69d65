"""The rule of epochs: what begins where, what only moves forward, and which entries are live."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channelindex import epochs
from channelindex.blocks import FORMAT_VERSION
from channelindex.epochs import NO_BOUND, Bounds, EpochStart, PartitionRecord, new_record
from channelindex.errors import IndexCorrupt, StaleEpoch
from channelindex.model import ORIGIN, Checkpoint, IndexMeta
from channelindex.reading.snapshot import Archives, History, IndexSnapshot
from channelindex.stores.memory import MemoryIndex, MemoryReader

FIRST_VB = 32
WIDTH = 3
META = IndexMeta(FORMAT_VERSION, WIDTH, 1, "source", "index")
SEQNOS = st.integers(0, 12)
STARTS = st.tuples(*[SEQNOS] * WIDTH)


def _at(seqno: int) -> Checkpoint:
    return Checkpoint(1, seqno, seqno, seqno, 0)


@st.composite
def _histories(draw) -> list[EpochStart]:
    """Any history at all: starts in no order, as rollbacks and rebuilds make them."""
    history = []
    for number in sorted(draw(st.sets(st.integers(1, 30), max_size=8))):
        starts = draw(STARTS)
        reaches = tuple(map(max, starts, draw(STARTS)))
        history.append(EpochStart(number, starts, reaches if reaches != starts else ()))
    return history


def _unpruned_bound(history, epoch: int, index: int) -> int:
    return min([start.starts[index] for start in history if start.epoch > epoch], default=NO_BOUND)


def _unpruned_reach(history, epoch: int, index: int) -> int:
    return min([start.true_upto[index] for start in history if start.epoch > epoch], default=NO_BOUND)


@given(_histories())
def test_pruned_history_bounds_every_epoch_as_the_whole_one_does(history):
    """Revived or newly dead entries would show here: every epoch, also those that the history does not name."""
    kept = epochs._without_implied(tuple(history))
    record = PartitionRecord(FIRST_VB, 31, "n1", (_at(12),) * WIDTH, kept)
    bounds = Bounds(record)
    for epoch in range(32):
        expected = tuple(_unpruned_bound(history, epoch, index) for index in range(WIDTH))
        assert tuple(bounds.bound(epoch, FIRST_VB + index) for index in range(WIDTH)) == expected
        assert bounds.clamp(epoch, (5, 9, 12)) == tuple(map(min, (5, 9, 12), expected))
        assert bounds.reach_of(epoch) == tuple(_unpruned_reach(history, epoch, index) for index in range(WIDTH))


@given(_histories())
def test_pruning_step_by_step_is_pruning_at_once(history):
    stepwise: tuple[EpochStart, ...] = ()
    for start in history:
        stepwise = epochs._without_implied((*stepwise, start))
    assert stepwise == epochs._without_implied(tuple(history))


def test_restarts_without_progress_and_rebuilds_leave_one_start():
    record = new_record(FIRST_VB, WIDTH)
    for epoch in range(1, 50):
        record = epochs.begin(record, epoch, "n1")
    assert record.history == (EpochStart(49, (0, 0, 0)),)


ACTIONS = st.one_of(
    st.tuples(st.just("begin"), st.dictionaries(st.integers(0, WIDTH - 1), SEQNOS)),
    st.tuples(st.just("advance"), st.dictionaries(st.integers(0, WIDTH - 1), SEQNOS)),
)


@given(st.lists(ACTIONS, max_size=25))
def test_record_keeps_its_promises_through_any_life(actions):
    """Against an oracle that keeps every start: bounds agree, stable entries of the past stay as they were judged."""
    record, whole = new_record(FIRST_VB, WIDTH), []
    for epoch, (action, argument) in enumerate(actions, 1):
        changed = {FIRST_VB + index: _at(seqno) for index, seqno in argument.items()}
        before = record
        if action == "begin":
            record = epochs.begin(record, epoch, f"n{epoch}", changed)
            whole.append(EpochStart(epoch, record.stable))
            assert all(now <= then for now, then in zip(record.stable, before.stable, strict=True))
        else:
            record = epochs.advance(record, record.epoch, changed)
            assert all(now >= then for now, then in zip(record.stable, before.stable, strict=True))
        bounds = Bounds(record)
        for asked in range(len(actions) + 1):
            for index in range(WIDTH):
                assert bounds.bound(asked, FIRST_VB + index) == _unpruned_bound(whole, asked, index)


@pytest.mark.parametrize("kept", [0, 1, 2, 3])
@given(st.lists(ACTIONS, max_size=25))
def test_a_history_in_two_places_bounds_every_epoch_as_the_whole_one_does(kept, actions):
    """No dead entry comes to life, no live one dies: at any time, for readers who hold any record of the past."""
    record, whole = new_record(FIRST_VB, WIDTH), list[EpochStart]()
    archive: list[EpochStart] = []
    seen: list[tuple[PartitionRecord, list[EpochStart]]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epochs, "HISTORY_BYTES", kept * 8 * (WIDTH + 1))
        for epoch, (action, argument) in enumerate(actions, 1):
            changed = {FIRST_VB + index: _at(seqno) for index, seqno in argument.items()}
            if action == "begin":
                record, old = epochs.archive_old(epochs.begin(record, epoch, f"n{epoch}", changed))
                archive += old
                whole.append(EpochStart(epoch, record.stable))
                assert len(record.history) <= max(1, kept)
            else:
                record = epochs.advance(record, record.epoch, changed)
            seen.append((record, list(whole)))
    for then, starts in seen:
        bounds, recent = Bounds(epochs.whole_record(then, [*archive, *archive[::-1]])), Bounds(then)
        for asked in range(len(actions) + 1):
            for index in range(WIDTH):
                expected = _unpruned_bound(starts, asked, index)
                assert bounds.bound(asked, FIRST_VB + index) == expected
                if asked >= then.archived:
                    assert recent.bound(asked, FIRST_VB + index) == expected


def test_a_lost_archive_is_corrupt_and_one_that_nothing_needs_is_not_asked_for():
    starts = tuple(EpochStart(epoch, (epoch,) * WIDTH) for epoch in (1, 2, 3))
    record = PartitionRecord(FIRST_VB, 3, "n1", (_at(3),) * WIDTH, starts[2:], archived=2)
    with pytest.raises(IndexCorrupt, match="archive"):
        epochs.whole_record(record, starts[:1])
    rebuilt = epochs.begin(record, 4, "n2", dict.fromkeys(record.vbuckets, ORIGIN))
    assert (
        epochs.whole_record(rebuilt, ())
        == rebuilt
        == record._replace(
            epoch=4, owner="n2", checkpoints=(ORIGIN,) * WIDTH, history=(EpochStart(4, (0,) * WIDTH),), archived=0
        )
    )


@given(_histories(), STARTS, st.integers(0, 31))
def test_visible_is_live_and_stable_and_not_of_the_future(history, stable, epoch):
    current = history[-1].epoch if history else 0
    record = PartitionRecord(0, current, "n1", tuple(map(_at, stable)), tuple(history))
    archives = Archives(MemoryReader(MemoryIndex(), "test"))
    snapshot = IndexSnapshot(META, list(stable), History([record], archives))
    lowered = [min(stable[index], _unpruned_bound(history, epoch, index)) for index in range(WIDTH)]
    assert snapshot.limits(epoch).clock == lowered
    assert snapshot.limits(epoch).visible == ([0] * WIDTH if epoch > current else lowered)


def test_begin_sets_epoch_owner_and_start():
    record = epochs.begin(new_record(FIRST_VB, WIDTH), 4, "n1")
    assert record == PartitionRecord(FIRST_VB, 4, "n1", (ORIGIN,) * WIDTH, (EpochStart(4, (0, 0, 0)),))


def test_begin_takes_only_lower_checkpoints_from_a_rollback():
    record = epochs.advance(epochs.begin(new_record(FIRST_VB, WIDTH), 1, "n1"), 1, {33: _at(9), 34: _at(5)})
    back = {33: Checkpoint(7, 4, 4, 4, 0), 34: Checkpoint(7, 5, 5, 5, 0)}
    begun = epochs.begin(record, 2, "n1", back)
    assert begun.checkpoints == (ORIGIN, back[33], _at(5))
    assert begun.history == (EpochStart(1, (0, 0, 0)), EpochStart(2, (0, 4, 5)))


@pytest.mark.parametrize(("epoch", "only_if"), [(3, None), (2, None), (0, None), (4, 2), (3, 3)])
def test_begin_is_refused(epoch, only_if):
    record = epochs.begin(new_record(FIRST_VB, WIDTH), 3, "n1")
    with pytest.raises(StaleEpoch) as raised:
        epochs.begin(record, epoch, "n2", only_if=only_if, partition=8)
    assert (raised.value.partition, raised.value.current) == (8, 3)


@pytest.mark.parametrize("epoch", [2, 4])
def test_advance_takes_exactly_the_current_epoch(epoch):
    record = epochs.begin(new_record(FIRST_VB, WIDTH), 3, "n1")
    with pytest.raises(StaleEpoch):
        epochs.advance(record, epoch, {32: _at(1)})


def test_advance_keeps_what_is_further_and_replaces_what_is_equal():
    record = epochs.advance(epochs.begin(new_record(FIRST_VB, WIDTH), 1, "n1"), 1, {32: _at(9), 33: _at(9)})
    again = epochs.advance(record, 1, {32: _at(8), 33: Checkpoint(2, 9, 9, 30, 5)})
    assert again.checkpoints == (_at(9), Checkpoint(2, 9, 9, 30, 5), ORIGIN)


def test_has_begun_recognizes_its_own_call_only():
    record = epochs.advance(epochs.begin(new_record(FIRST_VB, WIDTH), 1, "n1"), 1, {32: _at(9)})
    rolled_back = epochs.begin(record, 2, "n1", {32: _at(4)})
    assert epochs.has_begun(rolled_back, 2, "n1")
    assert epochs.has_begun(rolled_back, 2, "n1", {32: _at(4)})
    assert epochs.has_begun(epochs.advance(rolled_back, 2, {32: _at(11)}), 2, "n1", {32: _at(4)})
    assert not epochs.has_begun(rolled_back, 2, "n1", {32: _at(3)})
    assert not epochs.has_begun(rolled_back, 2, "n2")
    assert not epochs.has_begun(rolled_back, 3, "n1")
    assert not epochs.has_begun(new_record(FIRST_VB, WIDTH), 0, "")


def test_lower_start_of_a_later_epoch_kills_all_before_it():
    history = (EpochStart(1, (0, 0, 0)), EpochStart(2, (10, 10, 10)), EpochStart(5, (4, 12, 10)))
    bounds = Bounds(PartitionRecord(FIRST_VB, 5, "n1", (_at(12),) * WIDTH, history))
    assert [bounds.bound(epoch, 32) for epoch in (0, 1, 2, 4, 5, 6)] == [0, 4, 4, 4, NO_BOUND, NO_BOUND]
    assert [bounds.bound(epoch, 33) for epoch in (1, 2)] == [10, 12]


class TestTheReachOfAStart:
    """It tells a return from a rollback, and both from a start that takes nothing back."""

    RECORD = epochs.advance(
        epochs.begin(new_record(FIRST_VB, WIDTH), 1, "n1"), 1, {32: _at(9), 33: Checkpoint(1, 9, 6, 11), 34: _at(9)}
    )

    def test_is_its_seqno_after_a_rollback_and_where_nothing_is_taken_back(self):
        start = epochs.begin(self.RECORD, 2, "n1", {34: _at(4)}).history[-1]
        assert (start.starts, start.true_upto) == ((9, 9, 4), (9, 11, 4))

    def test_of_a_return_is_where_readers_may_have_been(self):
        back = {
            32: epochs.returned(self.RECORD.checkpoints[0], _at(5), 2),
            33: epochs.returned(self.RECORD.checkpoints[1], _at(7), 2),
            34: epochs.returned(self.RECORD.checkpoints[2], ORIGIN, 0),
        }
        record = epochs.begin(self.RECORD, 2, "n1", back)
        assert record.history[-1] == EpochStart(2, (5, 7, 0), (9, 11, NO_BOUND))
        assert record.checkpoints[2] == ORIGIN
        assert Bounds(record).reach_of(1) == (9, 11, 0)

    def test_stays_until_the_stretch_is_read_again(self):
        record = epochs.begin(self.RECORD, 2, "n1", {32: epochs.returned(self.RECORD.checkpoints[0], _at(5), 2)})
        record = epochs.advance(record, 2, {32: Checkpoint(1, 7, 2, 9)})
        taken_over = epochs.begin(record, 3, "n2")
        assert Bounds(taken_over).reach_of(1)[0] == Bounds(taken_over).reach_of(2)[0] == 9
        done = epochs.begin(epochs.advance(taken_over, 3, {32: _at(12)}), 4, "n1")
        assert (Bounds(done).reach_of(1)[0], Bounds(done).reach_of(3)[0]) == (9, 12)

    def test_is_its_seqno_where_the_stream_begins_at_0(self):
        """What is not asked for cannot be rolled back."""
        record = epochs.compact(self.RECORD, 1, [8, 0, 0])
        record = epochs.begin(record, 2, "n1", {32: epochs.returned(record.checkpoints[0], _at(5), 2)})
        assert (record.checkpoints[0], record.history[-1].true_upto[0]) == (ORIGIN, 5)
        assert [Bounds(record).is_unwatched(1, vb) for vb in record.vbuckets] == [True, False, False]

    def test_is_its_seqno_after_a_return_to_0_which_no_later_start_turns_into_a_rollback(self):
        nothing = {vb: epochs.returned(at, ORIGIN, 0) for vb, at in enumerate(self.RECORD.checkpoints, FIRST_VB)}
        record = epochs.begin(self.RECORD, 2, "n1", nothing)
        assert (record.stable, record.history[-1].true_upto) == ((0, 0, 0), (0, 0, 0))
        for epoch in (3, 4):
            record = epochs.begin(record, epoch, "n2")
        assert [start.epoch for start in record.history] == [2, 4]
        rolled_back = epochs.begin(epochs.advance(record, 4, {32: _at(5)}), 5, "n2", {32: ORIGIN})
        for later in (record, rolled_back):
            assert all(Bounds(later).is_unwatched(1, vb) for vb in later.vbuckets)
            assert not any(Bounds(later).is_unwatched(2, vb) for vb in later.vbuckets)

    def test_to_stand_at_0_gives_up_no_archive(self):
        record = epochs.begin(new_record(FIRST_VB, WIDTH), 3, "n1")._replace(archived=2)
        assert epochs.begin(record, 4, "n1").archived == 2


class TestARollbackBelowWhatWasCompacted:
    """The stream begins again at 0, and what is below the rollback stays live."""

    RECORD = epochs.compact(epochs.advance(epochs.begin(new_record(0, 1), 1, "n"), 1, {0: _at(100)}), 1, [80])

    def test_above_it_goes_back_as_ever(self):
        record = epochs.begin(self.RECORD, 2, "n", {0: _at(90)})
        assert (record.stable, record.history[-1].starts, record.restarting) == ((90,), (90,), ())

    def test_below_it_streams_from_0_and_keeps_what_is_below(self):
        record = epochs.begin(self.RECORD, 2, "n", {0: _at(50)})
        assert record.checkpoints == (ORIGIN,)
        assert Bounds(record).bound(1, 0) == 50, "a deletion at or below it stays live"
        assert (record.compacted_through, record.restarting) == ((50,), (50,))

    def test_a_takeover_meanwhile_keeps_it_too(self):
        record = epochs.begin(self.RECORD, 2, "n", {0: _at(50)})
        record = epochs.begin(epochs.advance(record, 2, {0: _at(10)}), 3, "n")
        assert (record.stable, record.history[-1].starts, record.restarting) == ((10,), (50,), (50,))
        assert Bounds(record).bound(1, 0) == 50

    def test_a_takeover_after_it_begins_at_the_stable_clock(self):
        record = epochs.begin(self.RECORD, 2, "n", {0: _at(50)})
        record = epochs.begin(epochs.advance(record, 2, {0: _at(60)}), 3, "n")
        assert (record.stable, record.history[-1].starts, record.restarting) == ((60,), (60,), ())

    def test_another_rollback_meanwhile_begins_again_and_keeps_less(self):
        record = epochs.begin(self.RECORD, 2, "n", {0: _at(50)})
        record = epochs.begin(epochs.advance(record, 2, {0: _at(10)}), 3, "n", {0: _at(30)})
        assert (record.stable, record.history[-1].starts, record.restarting) == ((0,), (30,), (30,))

    def test_a_rebuild_keeps_nothing(self):
        record = epochs.begin(self.RECORD, 2, "n", {0: ORIGIN})
        assert (record.stable, record.history[-1].starts) == ((0,), (0,))
        assert (record.compacted_through, record.restarting) == ((), ())

    def test_is_what_refuses_the_compactor_of_an_older_view(self):
        record = epochs.begin(self.RECORD, 2, "n")
        for epoch in (1, 3):
            with pytest.raises(StaleEpoch):
                epochs.compact(record, epoch, [90])

    def test_after_a_loss_all_that_is_stable_counts_as_compacted(self):
        lost = epochs.begin(self.RECORD, 2, "n", {0: _at(90)})
        assert epochs.assume_compacted(lost).compacted_through == (90,)
        begun_anew = epochs.begin(self.RECORD, 2, "n", {0: _at(50)})
        assert epochs.assume_compacted(begun_anew) == begun_anew
        assert epochs.assume_compacted(new_record(0, 1)).compacted_through == ()

    def test_what_was_compacted_further_is_never_lowered(self):
        assert epochs.compact(self.RECORD, 1, [20]).compacted_through == (80,)
