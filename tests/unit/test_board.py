import time
from typing import Any

import pytest

from tests.support.processes import end_of
from workers.node.child import spawn
from workers.telemetry import board
from workers.telemetry.board import BATCH_WRITER, FEED_WORKER, FIELDS_BY_ROLE, ProcessStats, make_stats


def test_what_a_child_writes_its_parent_reads():
    feed, writer = make_stats([FEED_WORKER, BATCH_WRITER])

    def main(_stop):
        feed.start()
        feed.set(epoch=17, lag=(1 << 64) - 1)
        feed.add(events=3, entries=5)
        feed.add(events=4)
        feed.beat()
        return 0

    child = spawn("feed_worker", main)
    assert end_of(child) == 0
    words = feed.as_dict()
    assert words["pid"] == child.pid
    assert (words["epoch"], words["events"], words["entries"], words["lag"]) == (17, 7, 5, (1 << 64) - 1)
    assert 0 < words["started_ns"] <= words["beat_ns"] <= time.monotonic_ns()
    assert set(writer.as_dict().values()) == {0}


def test_a_beat_ends_the_silence():
    (slot,) = make_stats([FEED_WORKER])
    slot.start()
    started_ns = slot.get("beat_ns")
    assert slot.silent_s(started_ns + 1_500_000_000) == 1.5
    slot.beat()
    assert slot.get("beat_ns") > started_ns


def test_a_new_child_starts_from_zero():
    (slot,) = make_stats([BATCH_WRITER])
    slot.add(batches=9)
    slot.start()
    assert slot.get("batches") == 0


def test_a_child_that_starts_never_looks_as_if_it_had_not_beaten_for_hours():
    class Watched(list[int]):
        def __setitem__(self, index, value):
            super().__setitem__(index, value)
            assert slot.silent_s(time.monotonic_ns()) < 60

    words: Any = Watched([0] * 64)
    slot = ProcessStats(BATCH_WRITER, words)
    list.__setitem__(words, FIELDS_BY_ROLE[BATCH_WRITER].index("beat_ns"), time.monotonic_ns())
    slot.start()
    slot.start()


def test_neighbours_do_not_share_words():
    slots = make_stats([FEED_WORKER, FEED_WORKER, BATCH_WRITER])
    for number, slot in enumerate(slots, 1):
        slot.set(**dict.fromkeys(FIELDS_BY_ROLE[slot.role], number))
    assert [set(slot.as_dict().values()) for slot in slots] == [{1}, {2}, {3}]


def test_a_name_that_the_role_does_not_have_is_an_error():
    (slot,) = make_stats([BATCH_WRITER])
    with pytest.raises(KeyError, match="events"):
        slot.add(events=1)


@pytest.mark.parametrize("role", FIELDS_BY_ROLE)
def test_every_role_fits_into_a_slot(role):
    assert len(set(FIELDS_BY_ROLE[role])) == len(FIELDS_BY_ROLE[role]) <= board._STATS_WORDS
    assert isinstance(make_stats([role])[0], ProcessStats)
