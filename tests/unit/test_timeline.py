"""The moments of a timeline: how far they lie apart, how far back they reach, and which one answers for a time."""

from hypothesis import given
from hypothesis import strategies as st

from channelindex import epochs, timeline
from channelindex.epochs import EpochStart, PartitionRecord
from channelindex.model import ORIGIN, Checkpoint
from channelindex.timeline import GAP_SHARE, KEPT_MS, Moment, newest_before, superseded, surviving, with_moment


def _moment(time_ms: int, epoch: int = 1) -> Moment:
    return Moment(time_ms, epoch, 0, (ORIGIN,))


def _noted(times_ms) -> list[Moment]:
    moments: list[Moment] = []
    for time_ms in times_ms:
        moments = with_moment(moments, _moment(time_ms))
    return moments


def test_a_moment_each_second_leaves_some_forty_that_reach_back_to_the_beginning():
    moments = _noted(range(0, 20_000_000, 1000))
    times_ms = [moment.time_ms for moment in moments]
    assert times_ms[0] == 0
    assert times_ms[-1] == 19_999_000
    assert 20 < len(times_ms) < 45


@given(st.lists(st.integers(0, 2 * KEPT_MS), max_size=60, unique=True))
def test_for_any_age_there_is_a_moment_that_is_not_much_older(times_ms):
    """Of any that was ever noted, one is left that is older by less than a third of its age, unless it is too old."""
    times_ms = sorted(times_ms)
    left = [moment.time_ms for moment in _noted(times_ms)]
    assert left == sorted(set(left)), "ascending, and no time twice"
    for time_ms in times_ms:
        age_ms = times_ms[-1] - time_ms
        if age_ms < KEPT_MS:
            assert any(time_ms - age_ms / GAP_SHARE <= each <= time_ms for each in left)


def test_what_is_too_old_goes_but_for_the_one_that_answers_for_what_is_not():
    assert superseded([0, 10, KEPT_MS], KEPT_MS + 5) == [1]
    assert superseded([0, KEPT_MS // 2, KEPT_MS], 2 * KEPT_MS) == [0]


def test_a_clock_that_went_back_or_stands_still_moves_no_timeline_back():
    moments = with_moment(_noted([1000, 5000]), _moment(2000, epoch=7))
    assert [(moment.time_ms, moment.epoch) for moment in moments] == [(1000, 1), (5000, 1), (5001, 7)]
    assert timeline.next_time([], 3) == 3


def test_a_clock_that_was_ahead_for_a_moment_costs_no_younger_ones():
    """Of what came since, as many are left as without: else a lost second would send the index back to before."""
    moments = _noted([0, 1000, 2000 + 86_400_000])
    for number in range(3, 200):
        moments = with_moment(moments, _moment(1000 * number, epoch=number))
    assert [moment.epoch for moment in moments][-4:] == [196, 197, 198, 199]
    assert 10 < len(moments) < 45


def test_the_moment_for_a_time_is_the_newest_that_is_not_later():
    moments = _noted([1000, 5000, 9000])
    assert [newest_before(moments, time_ms) for time_ms in (999, 1000, 8999, 10**9)] == [
        None,
        moments[0],
        moments[1],
        moments[2],
    ]


def test_what_survives_a_loss_is_what_every_slot_vouches_for():
    """A mark that followed vouches, too; one of another epoch, and a moment without a mark, do not."""
    moments = [_moment(1, epoch=5)._replace(mark=3), _moment(2, epoch=5)._replace(mark=4), _moment(3, epoch=6)]
    assert surviving(moments, [{5: 4}, {5: 9}]) == moments[:2]
    assert surviving(moments, [{5: 4, 6: 1}, {5: 3}]) == moments[:1]
    assert surviving(moments, [{5: 4}, {6: 9}]) == ()
    assert surviving([_moment(1)], [{1: 9}]) == ()
    assert surviving([], []) == ()


def test_a_fall_back_goes_behind_what_a_later_start_took_back():
    """Per vbucket: the first was taken back to 4 since the newer moment, the second never."""

    def at(seqno: int) -> Checkpoint:
        return Checkpoint(1, seqno, seqno, seqno)

    def within(start: int, seqno: int) -> Checkpoint:
        return Checkpoint(1, seqno, start, 9)

    record = PartitionRecord(8, 7, "n1", (at(4), at(9)), (EpochStart(5, (0, 0)), EpochStart(7, (4, 9))))
    assert epochs.fall_back(record, [Moment(1, 7, 1, (at(4), at(8)))]) == {9: within(0, 8)}
    older, newer = Moment(1, 5, 1, (at(3), at(6))), Moment(2, 6, 1, (at(8), at(9)))
    assert epochs.fall_back(record, [older, newer]) == {8: Checkpoint(1, 3, 0, 4)}
    assert epochs.fall_back(record, [newer]) == {8: Checkpoint(snap_end=4)}
    assert epochs.fall_back(record, [older]) == {8: Checkpoint(1, 3, 0, 4), 9: within(0, 6)}


def test_a_fall_back_lies_in_a_snapshot_from_where_the_index_was_complete_to_where_readers_may_be():
    """The source answers with a rollback if it has lost any of that; and purged tombstones below concern nobody."""
    present = Checkpoint(7, 90, 80, 99, 5)
    record = PartitionRecord(0, 2, "n1", (present,), (EpochStart(1, (0,)), EpochStart(2, (10,))))
    moments = [
        Moment(1, 1, 1, (Checkpoint(6, 40, 40, 40, 3),)),
        Moment(2, 2, 1, (Checkpoint(7, 60, 50, 70, 4),)),
        Moment(3, 2, 2, (Checkpoint(7, 70, 70, 70, 4),)),
    ]
    assert epochs.fall_back(record, moments) == {0: Checkpoint(7, 70, 50, 99, 4)}
    assert epochs.fall_back(record, moments[:2]) == {0: Checkpoint(7, 60, 50, 99, 4)}
    assert epochs.fall_back(record, moments[:1]) == {0: Checkpoint(snap_end=99)}


def test_of_two_rollbacks_the_lower_counts():
    low, high = Checkpoint(1, 3), Checkpoint(2, 5)
    assert epochs.lower_of({0: low, 1: high, 2: low}, {0: high, 1: low, 3: high}) == {0: low, 1: low, 2: low, 3: high}
