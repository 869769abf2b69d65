"""Little is read at beats that all workers share, much at once."""

from hypothesis import given
from hypothesis import strategies as st

from workers.pipeline.feed_worker import MUCH_EVENTS, ReadPace

BEAT_S = 0.03


@given(st.floats(0, 1e7), st.integers(1, MUCH_EVENTS - 1))
def test_after_a_little_the_next_read_is_at_the_next_beat(now, n_events):
    pace = ReadPace(BEAT_S)
    pace.note(now, n_events)
    assert now <= pace.read_at <= now + BEAT_S * 1.001
    beats = pace.read_at / BEAT_S
    assert abs(beats - round(beats)) < 1e-6 * max(1.0, beats), "a beat of all workers, not one of its own"


def test_a_quiet_source_is_read_at_once_and_so_is_one_that_brings_much():
    pace = ReadPace(BEAT_S)
    assert pace.read_at == 0.0
    pace.note(100.0, 1)
    due = pace.read_at
    pace.note(due, 0)
    assert pace.read_at == due, "nothing came: the next change is read when it comes"
    pace.note(200.0, MUCH_EVENTS)
    assert pace.read_at == 200.0
