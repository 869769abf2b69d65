"""Lag in time: against a model that remembers when every seqno was seen."""

from hypothesis import given
from hypothesis import strategies as st

from workers.pipeline.lag import MAX_MARKS, Behind, LagMeter


def test_what_is_stable_is_not_behind():
    assert LagMeter(4).measure(100, {0: 7, 5: 3}, {0: 7, 5: 3}, {}) == {0: Behind(0, 0), 1: Behind(0, 0)}


def test_a_partition_is_behind_since_its_oldest_change_was_seen():
    meter = LagMeter(4)
    assert meter.measure(100, {0: 7, 1: 2}, {0: 5, 1: 2}, {}) == {0: Behind(2, 100)}
    assert meter.measure(200, {0: 9, 1: 3}, {0: 5, 1: 2}, {}) == {0: Behind(5, 100)}
    assert meter.measure(300, {0: 9, 1: 3}, {0: 8, 1: 2}, {}) == {0: Behind(2, 200)}
    assert meter.measure(400, {0: 9, 1: 3}, {0: 9, 1: 3}, {}) == {0: Behind(0, 0)}


def test_a_new_worker_inherits_what_its_predecessor_left_behind():
    meter = LagMeter(4)
    assert meter.measure(500, {0: 9}, {0: 4}, {0: 100}) == {0: Behind(5, 100)}
    assert meter.measure(600, {0: 9}, {0: 9}, {0: 100}) == {0: Behind(0, 0)}
    assert meter.measure(700, {0: 10}, {0: 9}, {0: 100}) == {0: Behind(1, 700)}


def test_vbuckets_that_went_are_forgotten():
    meter = LagMeter(1)
    meter.measure(100, {0: 9, 1: 9}, {0: 4, 1: 4}, {})
    assert meter.measure(200, {0: 9, 1: 9}, {1: 4}, {}) == {1: Behind(5, 100)}
    assert meter.measure(300, {0: 9, 1: 9}, {0: 4, 1: 4}, {}) == {0: Behind(5, 300), 1: Behind(5, 100)}


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=60))
def test_the_answer_is_never_too_short_and_exact_while_there_is_room_for_marks(steps):
    meter = LagMeter(1)
    high = stable = 0
    exact = True
    seen_ns_by_seqno: dict[int, int] = {}
    for now_ns, (written, indexed) in enumerate(steps, 1):
        seen_ns_by_seqno.update(dict.fromkeys(range(high + 1, high + written + 1), now_ns))
        high += written
        stable = min(high, stable + indexed)
        told = meter.measure(now_ns, {0: high}, {0: stable}, {})[0]
        waiting = {seen for seqno, seen in seen_ns_by_seqno.items() if seqno > stable}
        assert told.seqnos == high - stable
        assert (told.since_ns == 0) == (not waiting)
        if waiting:
            assert told.since_ns <= min(waiting)
            exact = exact and len(waiting) < MAX_MARKS
            assert told.since_ns == min(waiting) or not exact
        else:
            exact = True
