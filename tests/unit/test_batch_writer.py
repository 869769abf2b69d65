"""A batch is in the index before its ring is committed, whatever the store does in between."""

from contextlib import closing

import pytest

from channelindex import exits
from channelindex.errors import OutcomeUnknown, StoreUnavailable
from channelindex.logs import get
from workers.pipeline import batch_writer
from workers.pipeline import ring as ring_module
from workers.pipeline.batch_writer import GATHER_S, MAX_WAIT_S, MUCH_BYTES, TORN, BatchWriter
from workers.pipeline.beats import BeatTimer
from workers.pipeline.frames import pack_frames
from workers.pipeline.ring import Bell, CommitBell, Ring
from workers.telemetry.board import Board
from workers.telemetry.hot_channels import HotChannels, SharedNote


class Store:
    """Remembers what it is asked to write, and what was committed then; fails first with *errors*."""

    n_block_lookups = 0
    reached = 1
    """The servers that are reached, by their digest; by who connects anew, `moved_to`."""
    moved_to = 1

    def __init__(self, rings, *errors, stale=()):
        self._rings = rings
        self._errors = list(errors)
        self._stale = set(stale)
        self.writes = []
        self.committed_at_writes = []
        self.before_write = lambda: None

    def write(self, appends, principals=()):
        self.before_write()
        self.committed_at_writes.append([ring.committed for ring in self._rings])
        self.writes.append(([(append.channel, append.epoch) for append in appends], list(principals)))
        if self._errors:
            raise self._errors.pop(0)
        return self._stale

    def servers(self):
        return self.reached

    def reconnect(self):
        self.reached = self.moved_to


class Stop(Bell):
    """The node ends, after what is to come before."""

    def __init__(self):
        super().__init__()
        self.before = []

    def is_set(self):
        if self.before:
            self.before.pop(0)()
            return False
        return True


@pytest.fixture
def bells():
    with closing(Bell()) as space, closing(Bell()) as other, closing(Bell()) as data, closing(Stop()) as stop:
        yield [space, other, data, stop]


@pytest.fixture
def rings():
    made = [Ring(1 << 14), Ring(1 << 14)]
    for ring in made:
        ring.epoch = 5
    return made


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)


def writer_of(store, rings, bells, batch_bytes=1 << 20):
    return BatchWriter(
        store=store,
        rings=rings,
        commit_bells=[CommitBell(bell, [ring]) for bell, ring in zip(bells[:2], rings, strict=True)],
        data_bell=bells[2],
        batch_bytes=batch_bytes,
        stats=Board(1).writers[0],
        hot_channels=HotChannels(SharedNote()),
        stop=bells[3],
        log=get("test"),
    )


def publish(ring, epoch, channel, seqno=1, principals=()):
    entry = b"\0\1" + seqno.to_bytes(8, "big") + b"entry"
    (frame,) = pack_frames(epoch, "g", {channel: [entry]}, principals, ring.max_payload)
    assert ring.try_publish(frame)


def test_ring_is_committed_after_the_write_and_not_before(rings, bells):
    store = Store(rings)
    publish(rings[0], 5, "a")
    publish(rings[1], 5, "b")
    assert writer_of(store, rings, bells)._write_batch()
    assert store.committed_at_writes == [[0, 0]]
    assert [ring.fill for ring in rings] == [0, 0]


@pytest.mark.parametrize("error", [StoreUnavailable("away"), OutcomeUnknown("no reply")])
def test_batch_that_the_store_did_not_take_is_written_again_whole_and_not_committed_before(rings, bells, error):
    store = Store(rings, error, error)
    publish(rings[0], 5, "a", principals=["_sync:user:u"])
    writer_of(store, rings, bells)._write_batch()
    assert store.writes == [([("a", 5)], ["_sync:user:u"])] * 3
    assert store.committed_at_writes == [[0, 0]] * 3
    assert rings[0].fill == 0


def test_error_that_no_repetition_helps_ends_the_writer_with_nothing_committed(rings, bells):
    publish(rings[0], 5, "a")
    with pytest.raises(ZeroDivisionError):
        writer_of(Store(rings, ZeroDivisionError()), rings, bells)._write_batch()
    assert rings[0].committed == 0


def test_what_an_earlier_epoch_left_in_the_ring_is_not_written_but_committed(rings, bells):
    store = Store(rings)
    publish(rings[0], 4, "old")
    publish(rings[0], 5, "new")
    publish(rings[0], 6, "newer")
    writer_of(store, rings, bells)._write_batch()
    assert store.writes[0][0] == [("new", 5), ("newer", 6)]
    assert rings[0].fill == 0


def test_epoch_that_the_store_refused_is_neither_committed_nor_written_again(rings, bells):
    """Its worker has to begin anew; the other ring does not wait for that."""
    store = Store(rings, stale={5})
    writer = writer_of(store, rings, bells)
    publish(rings[0], 5, "a")
    writer._write_batch()
    assert (rings[0].committed, rings[0].refused) == (0, 5)
    publish(rings[0], 5, "b", seqno=2)
    publish(rings[1], 6, "c")
    rings[1].epoch = 6
    writer._write_batch()
    assert [channels for channels, _ in store.writes] == [[("a", 5)], [("c", 6)]]
    assert (rings[0].committed, rings[1].fill) == (0, 0)
    rings[0].epoch = 7
    publish(rings[0], 7, "d")
    writer._write_batch()
    assert store.writes[-1][0] == [("d", 7)]
    assert rings[0].fill == 0


def test_refusal_of_an_epoch_that_is_over_is_committed(rings, bells):
    store = Store(rings, stale={5})
    publish(rings[0], 5, "a")
    rings[0].epoch = 5
    writer = writer_of(store, rings, bells)
    store.before_write = lambda: setattr(rings[0], "epoch", 6)
    writer._write_batch()
    assert rings[0].fill == 0
    assert rings[0].refused == 0


def test_a_commit_names_the_servers_that_took_it(rings, bells):
    store = Store(rings)
    writer = writer_of(store, rings, bells)
    publish(rings[0], 5, "a")
    writer._write_batch()
    assert rings[0].took >> 16 == 1
    assert rings[1].took == 0, "nothing of it was committed"


def test_a_writer_whose_feed_worker_met_other_servers_connects_anew(rings, bells):
    """An address that moved: who was connected before goes on talking to the server that was there then."""
    store = Store(rings)
    store.moved_to = 2
    writer = writer_of(store, rings, bells)
    publish(rings[0], 5, "a")
    writer._write_batch()
    assert rings[0].took >> 16 == 1
    rings[0].expected_servers = 2
    publish(rings[0], 5, "b")
    writer._write_batch()
    assert rings[0].took >> 16 == 2


def test_a_batch_during_which_the_store_moved_is_written_again(rings, bells):
    store = Store(rings)
    store.before_write = lambda: setattr(store, "reached", 2)
    publish(rings[0], 5, "a")
    writer_of(store, rings, bells)._write_batch()
    assert len(store.writes) == 2
    assert rings[0].took >> 16 == 2


def test_writer_that_is_asked_to_stop_writes_all_that_the_rings_hold_first(rings, bells):
    store = Store(rings)
    for seqno in range(1, 20):
        publish(rings[seqno % 2], 5, "a", seqno)
    assert writer_of(store, rings, bells, batch_bytes=1).run() == exits.OK
    assert len(store.writes) > 5
    assert [ring.fill for ring in rings] == [0, 0]


class Clock:
    """Time that only the store takes."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    def monotonic_ns(self):
        return int(self.now * 1e9)


@pytest.mark.parametrize(
    ("n_channels", "took_s", "sizes"),
    [
        (1000, 0.01, [2, 4, 8, 8, 8]),
        (1000, 0.3, [2, 2, 2, 2, 2]),
        (1, 0.01, [2, 2, 2, 2, 2]),
    ],
    ids=["many channels", "a slow store", "one channel"],
)
def test_batches_that_merge_little_become_larger_while_the_store_is_quick(
    rings, bells, monkeypatch, n_channels, took_s, sizes
):
    clock, store = Clock(), Store(rings)
    monkeypatch.setattr(batch_writer, "time", clock)
    store.before_write = lambda: setattr(clock, "now", clock.now + took_s)
    writer = writer_of(store, rings, bells, batch_bytes=2 * FRAME_BYTES)
    publish_many(rings, n_channels)
    assert [writer._write_batch().merged.n_frames for _ in sizes] == sizes


def test_batches_are_of_the_usual_size_again_once_they_merge_much_or_take_long(rings, bells, monkeypatch):
    clock, store = Clock(), Store(rings)
    monkeypatch.setattr(batch_writer, "time", clock)
    writer = writer_of(store, rings, bells, batch_bytes=2 * FRAME_BYTES)
    publish_many(rings, 1000)
    assert [writer._write_batch().merged.n_frames for _ in range(3)] == [2, 4, 8]
    store.before_write = lambda: setattr(clock, "now", clock.now + 0.6)
    assert [writer._write_batch().merged.n_frames for _ in range(4)] == [8, 4, 2, 2]


FRAME_BYTES = 400


def publish_many(rings, n_channels):
    """Publish 20 frames of FRAME_BYTES, or a bit less, in each ring: of one entry in each of 10 of the channels."""
    for ring in rings:
        for number in range(20):
            names = [f"{(10 * number + index) % n_channels:04}" for index in range(10)]
            entry = b"\0\1" + number.to_bytes(8, "big") + b"entry of channel"
            sections = {name: [entry] * names.count(name) for name in names}
            (frame,) = pack_frames(5, "g", sections, (), ring.max_payload)
            assert FRAME_BYTES // 2 < len(frame) <= FRAME_BYTES
            assert ring.try_publish(frame)


def test_writer_waits_for_what_comes_until_it_is_asked_to_stop(rings, bells):
    store = Store(rings)
    for seqno in (1, 2):
        bells[3].before.append(lambda seqno=seqno: (publish(rings[0], 5, "a", seqno), bells[2].ring()))
    assert writer_of(store, rings, bells).run() == exits.OK
    assert len(store.writes) == 2


def test_principals_are_counted_without_any_entry_beside_them(rings, bells):
    store = Store(rings)
    (frame,) = pack_frames(5, "g", {}, ["_sync:user:u"], rings[0].max_payload)
    rings[0].try_publish(frame)
    writer_of(store, rings, bells)._write_batch()
    assert store.writes == [([], ["_sync:user:u"])]


def test_writer_that_begins_takes_again_what_was_not_committed(rings, bells):
    store = Store(rings)
    publish(rings[0], 5, "a")
    rings[0].take(1 << 20)
    assert writer_of(store, rings, bells).run() == exits.OK
    assert store.writes[0][0] == [("a", 5)]


def test_damaged_ring_ends_the_writer_with_its_own_code(rings, bells, monkeypatch):
    monkeypatch.setattr(ring_module, "_LOOK_AGAIN_S", 0.0)
    publish(rings[0], 5, "a")
    rings[0]._frames[10] ^= 1
    store = Store(rings)
    assert writer_of(store, rings, bells).run() == TORN
    assert store.writes == []


@pytest.mark.parametrize(("n_bytes", "waits"), [(10, [MAX_WAIT_S, GATHER_S]), (MUCH_BYTES, [MAX_WAIT_S])])
def test_little_waits_a_moment_for_what_comes_with_it_and_much_does_not(monkeypatch, bells, n_bytes, waits):
    ring = Ring(4 * MUCH_BYTES)
    seen: list[float] = []

    def wait(_, timeout_s):
        seen.append(timeout_s)
        return True

    monkeypatch.setattr(batch_writer, "wait_readable", wait)
    rings = [ring, Ring(1 << 14)]
    writer = writer_of(Store(rings), rings, bells)
    ring.try_publish(b"x" * n_bytes)
    with closing(BeatTimer()) as timer:
        writer._wait(timer)
    assert seen == waits


def test_what_comes_after_little_needs_no_bell_while_looks_find_something(rings, bells, monkeypatch):
    monkeypatch.setattr(batch_writer, "MAX_WAIT_S", 60.0)  # what is found is found at a beat
    store = Store(rings)
    awaited = []

    def come(seqno, *, rings_bell=False):
        def publish_it():
            awaited.append([ring.is_awaited(0.0) for ring in rings])
            publish(rings[0], 5, "a", seqno)
            if rings_bell:
                bells[2].ring()

        return publish_it

    # 3 comes when the first look in vain is over, and the writer still awaited
    bells[3].before += [come(1, rings_bell=True), come(2), lambda: None, come(3), lambda: None, lambda: None]
    assert writer_of(store, rings, bells).run() == exits.OK
    assert len(store.writes) == 3
    assert awaited == [[False, False], [False, False], [True, True]]
    assert not any(ring.is_awaited(0.0) for ring in rings)
