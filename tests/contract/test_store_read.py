"""The read half of every index store: value, absent or error, and waiting for the stable clock."""

import threading
import time

import pytest

from channelindex.blocks import fold_clock
from channelindex.model import Checkpoint
from channelindex.stores.base import BlockRef
from tests.support.stores import GROUP, META, Backend, append, checkpoints, entry, visible_entries


@pytest.fixture
def owner(backend: Backend):
    opened = backend.owner()
    opened.create_or_check(META)
    opened.begin(0, 1, "n1")
    return opened


def test_absent_things_are_absent(backend, owner):
    reader = backend.reader()
    assert list(reader.channels()) == []
    assert reader.channel_states(["A"]) == [None]
    assert reader.channel_states([]) == []
    assert reader.blocks([BlockRef("A", GROUP, 0)]) == [None]
    assert reader.blocks([]) == []
    assert reader.principal_counter("_sync:user:a") == 0
    assert reader.quarantined() == (0, [])
    assert reader.stable_counter() == 0


def test_answers_come_in_the_order_asked(backend, owner):
    backend.writer().write([append(name, 1, entry(0, seqno)) for seqno, name in enumerate("ABC", 1)])
    reader = backend.reader()
    states = reader.channel_states(["C", "zz", "A"])
    assert [state and max(fold_clock(state.groups[GROUP].frames).values()) for state in states] == [3, None, 1]
    blocks = reader.blocks([BlockRef("C", GROUP, 0), BlockRef("C", GROUP, 1), BlockRef("B", GROUP, 0)])
    assert [block is not None for block in blocks] == [True, False, True]


def test_a_channel_that_changed_since_it_was_noted_differs_from_one_that_did_not(backend, owner):
    """By Redis; the others say of each that it may have."""
    writer, reader = backend.writer(block_bytes=300), backend.reader()
    names = [f"c{number}" for number in range(1200)]
    writer.write([append(name, 1, entry(0, 1)) for name in names])

    def noted(channels):
        states = reader.channel_states(channels)
        return [reader.mark(channel, state) for channel, state in zip(channels, states, strict=True)]

    everything = [*names, "none"]
    marks = noted(everything)
    tells = marks[0] is not None
    assert [mark is not None for mark in marks] == [tells] * len(marks)
    if not tells:
        assert list(reader.changed([b"a note"])) == [True]
        return
    assert not any(reader.changed(marks))
    for seqno in range(2, 30):  # within its block, and into the next ones
        writer.write([append("c700", 1, entry(0, seqno)), append("none", 1, entry(0, seqno))])
        is_changed = reader.changed(marks)
        assert [name for name, other in zip(everything, is_changed, strict=True) if other] == ["c700", "none"]
        if seqno % 3 == 0:
            marks = noted(everything)
            assert not any(reader.changed(marks))
    writer.write([append("c3", 1, entry(3, 1), group="0000000000000008")])
    assert not any(reader.changed(noted(everything)))
    assert reader.changed(marks)[3]


def test_reading_creates_nothing(backend, owner):
    reader = backend.reader()
    reader.blocks([BlockRef("A", GROUP, 0)])
    reader.channel_states(["A"])
    assert list(reader.channels()) == []
    assert reader.blocks([BlockRef("A", GROUP, 0)]) == [None]


def test_every_channel_is_listed_once(backend, owner):
    names = {f"channel-{number}" for number in range(2500)}
    backend.writer(block_bytes=1).write([append(name, 1, entry(0, 1)) for name in sorted(names)])
    listed = list(backend.reader().channels())
    assert len(listed) == len(names)
    assert set(listed) == names


def test_entries_are_visible_up_to_the_stable_clock(backend, owner):
    backend.writer().write([append("A", 1, entry(0, 1), entry(0, 2), entry(1, 1))])
    reader = backend.reader()
    assert visible_entries(reader, "A") == set()
    owner.advance(1, checkpoints({0: 1}))
    assert visible_entries(reader, "A") == {entry(0, 1)}
    owner.advance(1, checkpoints({0: 2, 1: 1}))
    assert visible_entries(reader, "A") == {entry(0, 1), entry(0, 2), entry(1, 1)}


def test_every_advance_raises_the_stable_counter_once(backend, owner):
    owner.begin(1, 1, "n1")
    reader = backend.reader()
    counters = [reader.stable_counter()]
    for seqno in (1, 2, 3):
        owner.advance(1, checkpoints({0: seqno, 4: seqno}))
        counters.append(reader.stable_counter())
    assert counters == sorted(set(counters))


def test_a_start_that_goes_back_wakes_those_who_wait(backend, owner):
    """A follower is told at once that what it had is gone, not with the next change."""
    owner.advance(1, checkpoints({0: 5}))
    reader = backend.reader()
    counter = reader.stable_counter()
    owner.begin(0, 2, "n1")
    assert reader.stable_counter() == counter, "one at the stable clock is no news"
    owner.begin(0, 3, "n1", {0: Checkpoint(7, 4, 4, 4)})
    assert reader.wait_stable(counter, timeout_s=60) > counter


def test_waiting_returns_at_once_when_the_counter_has_moved(backend, owner):
    owner.advance(1, checkpoints({0: 1}))
    assert backend.reader().wait_stable(0, timeout_s=60) > 0


def test_waiting_ends_with_its_timeout(backend, owner):
    reader = backend.reader()
    assert reader.wait_stable(0, timeout_s=0) == 0
    assert reader.wait_stable(0, timeout_s=0.01) == 0


def test_advance_wakes_all_who_wait(backend, owner):
    results: list[int] = []

    def wait() -> None:
        results.append(backend.reader().wait_stable(0, timeout_s=30))

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)  # most of them wait by now; who does not yet must not miss the advance either
    owner.advance(1, checkpoints({0: 1}))
    for thread in threads:
        thread.join(timeout=30)
    assert results == [backend.reader().stable_counter()] * 3
    assert results[0] > 0


def test_no_wake_up_is_lost_however_the_advances_fall(backend, owner):
    """The waiter asks again with what it got; it must come to the last advance without a timeout."""
    n_advances, seen = 200, [0]
    reader = backend.reader()

    def follow() -> None:
        while reader.partition_records()[0].stable[0] < n_advances:
            seen.append(reader.wait_stable(seen[-1], timeout_s=30))

    follower = threading.Thread(target=follow)
    follower.start()
    for seqno in range(1, n_advances + 1):
        owner.advance(1, checkpoints({0: seqno}))
    follower.join(timeout=30)
    assert not follower.is_alive()
    assert seen == sorted(set(seen)), "each time it had moved"
