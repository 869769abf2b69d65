"""Little is read at beats that all workers share, much at once, and what may follow it soon."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.pipeline.feed_worker import FIRST_WAIT_S, LARGE_EVENT_BYTES, MUCH_BYTES, MUCH_EVENTS, ReadPace

BEAT_S = 0.03
LITTLE = st.tuples(st.integers(1, MUCH_EVENTS - 1), st.integers(0, MUCH_BYTES - 1))


@given(st.floats(0, 1e7), LITTLE)
def test_after_a_little_the_next_read_is_at_the_next_beat(now, little):
    pace = ReadPace(BEAT_S)
    pace.note(now, *little)
    assert now <= pace.read_at <= now + BEAT_S * 1.001
    beats = pace.read_at / BEAT_S
    assert abs(beats - round(beats)) < 1e-6 * max(1.0, beats), "a beat of all workers, not one of its own"


@pytest.mark.parametrize("much", [(MUCH_EVENTS, 0), (1, MUCH_BYTES)], ids=["events", "bytes"])
def test_a_quiet_source_is_read_at_once_and_so_is_one_that_brings_much(much):
    pace = ReadPace(BEAT_S)
    assert pace.read_at == 0.0
    pace.note(100.0, 1, 100)
    due = pace.read_at
    pace.note(due, 0, 0)
    assert pace.read_at == due, "nothing came: the next change is read when it comes"
    pace.note(200.0, *much)
    assert pace.read_at == 200.0


def test_after_large_documents_the_reads_that_bring_little_are_ever_further_apart_until_there_is_a_beat():
    pace = ReadPace(beat_s=1.0)
    pace.note(100.0, 3, MUCH_BYTES)
    waits = []
    while pace.read_at < 101.0:
        at = pace.read_at
        pace.note(at, 1, 100)
        waits.append(pace.read_at - at)
    assert waits[:-1] == pytest.approx([FIRST_WAIT_S * 2**n for n in range(len(waits) - 1)])
    assert pace.read_at == 101.0
    pace.note(101.0, 1, 100)
    assert pace.read_at == 102.0, "the source is quiet again"


@pytest.mark.parametrize("n_events", [MUCH_EVENTS, MUCH_BYTES // LARGE_EVENT_BYTES + 1], ids=["many", "not so many"])
def test_after_small_documents_the_read_after_one_that_brings_little_is_at_the_beat(n_events):
    pace = ReadPace(beat_s=1.0)
    pace.note(100.0, n_events, MUCH_BYTES)
    pace.note(100.25, 1, 100)
    assert pace.read_at == 101.0
