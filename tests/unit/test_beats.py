"""The timer of the beats goes on for as long as it is listened to."""

from contextlib import closing

from channelindex.polling import wait_readable
from workers.pipeline.beats import BEAT_S, LOOK_S, UNASKED_S, BeatTimer

DEADLINE_S = 60.0


def test_the_timer_is_due_again_and_again():
    with closing(BeatTimer()) as timer:
        timer.clear()
        for _ in range(3):
            assert wait_readable([timer], DEADLINE_S)
            timer.clear()
    timer.close()


def test_what_is_published_without_a_bell_is_there_before_the_look():
    assert 0 < UNASKED_S < LOOK_S < BEAT_S
