"""A checkpoint becomes stable only after every writer has committed everything before it."""

from hypothesis import given
from hypothesis import strategies as st

from channelindex.model import Checkpoint
from workers.pipeline.outbox import StableQueue


def at(seqno: int) -> Checkpoint:
    return Checkpoint(1, seqno, seqno, seqno, 0)


def test_one_slow_writer_holds_everything_back():
    queue = StableQueue()
    queue.push([10, 10], {1: at(5)}, 3)
    assert queue.pop_committed([1000, 9]) == {}
    assert queue.n_events == 3
    assert queue.pop_committed([1000, 10]) == {1: at(5)}
    assert queue.n_events == 0


def test_newest_checkpoint_of_a_vbucket_wins():
    queue = StableQueue()
    queue.push([10], {1: at(5), 2: at(7)}, 2)
    queue.push([20], {1: at(6)}, 1)
    assert queue.pop_committed([20]) == {1: at(6), 2: at(7)}
    assert len(queue) == 0


@given(
    st.lists(st.lists(st.integers(0, 5), min_size=2, max_size=2), max_size=20),
    st.lists(st.integers(0, 60), min_size=2, max_size=2),
)
def test_what_leaves_is_the_longest_prefix_that_both_writers_committed(steps, committed):
    queue = StableQueue()
    positions = [0, 0]
    expected = {}
    prefix = True
    for seqno, step in enumerate(steps, 1):
        positions = [position + more for position, more in zip(positions, step, strict=True)]
        queue.push(positions, {0: at(seqno)}, 1)
        prefix = prefix and all(position <= done for position, done in zip(positions, committed, strict=True))
        if prefix:
            expected = {0: at(seqno)}
    assert queue.pop_committed(committed) == expected


def test_rounds_without_frames_do_not_fill_the_queue():
    queue = StableQueue()
    for seqno in range(1, 1_001):
        queue.push([10, 10], {1: at(seqno), 2: at(5)}, 1)
    assert len(queue) == 1
    assert queue.n_events == 1_000
    assert queue.pop_committed([10, 10]) == {1: at(1_000), 2: at(5)}
    assert queue.n_events == 0
