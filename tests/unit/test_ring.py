import select
from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from channelindex.errors import InvariantBroken
from workers.pipeline import ring as ring_module
from workers.pipeline.ring import Bell, Ring, TornFrame

HEAD_BYTES = 8
CAPACITY = 256


def publish(ring: Ring, payload: bytes) -> int:
    position = ring.try_publish(payload)
    assert position is not None
    return position


def take_all(ring: Ring) -> list[bytes]:
    return [bytes(payload) for payload in ring.take(1 << 30)]


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(ring_module, "_LOOK_AGAIN_S", 0.0)


def test_frames_come_out_as_they_went_in():
    ring = Ring(CAPACITY)
    payloads = [b"", b"a", b"12345678", bytes(range(50))]
    positions = [publish(ring, payload) for payload in payloads]
    assert take_all(ring) == payloads
    assert positions[-1] == ring.written == ring.read
    assert positions == sorted(positions)
    assert take_all(ring) == []


def test_room_is_free_again_only_after_commit():
    ring = Ring(CAPACITY)
    payload = bytes(CAPACITY // 2 - HEAD_BYTES)
    assert ring.try_publish(payload)
    assert ring.try_publish(payload)
    assert ring.free == 0
    take_all(ring)
    assert ring.try_publish(b"x") is None
    ring.commit()
    assert ring.free == CAPACITY
    assert ring.try_publish(b"x")


def test_commit_covers_only_what_was_taken():
    ring = Ring(CAPACITY)
    ends = [publish(ring, bytes([number]) * 16) for number in range(4)]
    assert len(ring.take(32)) == 2
    ring.commit()
    assert ring.committed == ends[1]
    assert ring.fill == ends[3] - ends[1]


def test_take_gives_one_frame_that_is_longer_than_its_limit():
    ring = Ring(CAPACITY)
    ring.try_publish(bytes(100))
    ring.try_publish(b"next")
    assert [len(payload) for payload in ring.take(10)] == [100]
    assert [len(payload) for payload in ring.take(0)] == [4]


@pytest.mark.parametrize("offset", range(0, CAPACITY, 8))
def test_the_longest_payload_fits_into_an_empty_ring_wherever_its_end_falls(offset):
    ring = Ring(CAPACITY)
    for _ in range(offset // 8):
        ring.try_publish(b"")
        take_all(ring)
        ring.commit()
    payload = bytes(range(ring.max_payload))
    assert ring.written == ring.committed == offset
    assert ring.try_publish(payload)
    assert take_all(ring) == [payload]


def test_a_payload_that_would_never_be_sure_to_fit_is_refused():
    ring = Ring(CAPACITY)
    with pytest.raises(ValueError, match=r"workers\.ring_bytes"):
        ring.try_publish(bytes(ring.max_payload + 1))
    assert ring.written == 0


def test_a_ring_that_is_too_small_is_refused():
    with pytest.raises(ValueError, match="at least 64"):
        Ring(63)


def test_capacity_is_rounded_down_to_whole_words():
    ring = Ring(100)
    assert ring.capacity == 96
    assert ring.try_publish(bytes(ring.max_payload))
    assert ring.try_publish(bytes(ring.max_payload))


def test_a_new_consumer_goes_on_at_the_committed_position():
    ring = Ring(CAPACITY)
    for payload in (b"one", b"two", b"three"):
        ring.try_publish(payload)
    ring.take(3)
    ring.commit()
    take_all(ring)
    ring.reset_consumer()
    assert take_all(ring) == [b"two", b"three"]


def test_epoch_is_a_word_of_its_own():
    ring = Ring(CAPACITY)
    ring.try_publish(b"frame of an earlier life")
    ring.epoch = (1 << 64) - 1
    assert ring.epoch == (1 << 64) - 1
    assert take_all(ring) == [b"frame of an earlier life"]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("bit", range(0, 8 * (HEAD_BYTES + 5), 3))
def test_a_flipped_bit_is_a_torn_frame(bit):
    ring = Ring(CAPACITY)
    ring.try_publish(b"right")
    ring.try_publish(b"wrong")
    ring._frames[16 + bit // 8] ^= 1 << bit % 8
    with pytest.raises(TornFrame, match="position 16"):
        ring.take(1 << 30)
    assert ring.read == 0
    assert issubclass(TornFrame, InvariantBroken)


@pytest.mark.usefixtures("impatient")
def test_what_an_earlier_lap_left_at_the_same_place_is_a_torn_frame():
    """As if `written` had become visible before the frame: the old frame there is whole, but of another position."""
    ring = Ring(CAPACITY)
    for _ in range(CAPACITY // 32):
        ring.try_publish(bytes(24))
    take_all(ring)
    ring.commit()
    ring._words[ring_module._WRITTEN] += 32
    with pytest.raises(TornFrame):
        ring.take(1 << 30)


@pytest.mark.usefixtures("impatient")
def test_a_skip_mark_that_is_not_ours_is_a_torn_frame():
    ring = Ring(CAPACITY)
    ring.try_publish(b"12345678")
    ring._frames[0:4] = b"\xff" * 4
    with pytest.raises(TornFrame):
        ring.take(1 << 30)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("payloads", [[b"12345678"], [bytes(100), bytes(112), bytes(40)]], ids=["frame", "skip mark"])
def test_what_reaches_beyond_written_is_a_torn_frame(payloads):
    ring = Ring(CAPACITY)
    for payload in payloads[:-1]:
        publish(ring, payload)
        take_all(ring)
        ring.commit()
    start = ring.written
    publish(ring, payloads[-1])
    ring._words[ring_module._WRITTEN] = start + 8
    with pytest.raises(TornFrame):
        ring.take(1 << 30)


def test_a_frame_that_becomes_visible_late_is_taken_all_the_same(monkeypatch):
    ring = Ring(CAPACITY)
    ring.try_publish(b"late")
    missing = bytes(ring._frames[8:12])
    ring._frames[8:12] = bytes(4)
    looks: list[float] = []

    def appear(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            ring._frames[8:12] = missing

    monkeypatch.setattr("time.sleep", appear)
    assert take_all(ring) == [b"late"]
    assert len(looks) == 3


def test_a_bell_wakes_until_it_is_cleared():
    bell = Bell()
    bell.clear()
    assert select.select([bell], [], [], 0)[0] == []
    bell.ring()
    bell.ring()
    assert select.select([bell], [], [], 0)[0] == [bell]
    bell.clear()
    assert select.select([bell], [], [], 0)[0] == []
    bell.close()
    bell.close()


class RingModel(RuleBasedStateMachine):
    """A ring against two deques: what is published and not taken, and what is taken and not committed."""

    def __init__(self) -> None:
        super().__init__()
        self.ring = Ring(CAPACITY)
        self.waiting: deque[bytes] = deque()
        self.taken: deque[bytes] = deque()
        self.n_published = 0

    @rule(length=st.integers(0, CAPACITY // 2 - HEAD_BYTES))
    def publish(self, length: int) -> None:
        payload = bytes([self.n_published % 256]) * length
        room_to_end = CAPACITY - self.ring.written % CAPACITY
        size = HEAD_BYTES + (length + 7) // 8 * 8
        needed = size if size <= room_to_end else size + room_to_end
        fits = needed <= self.ring.free
        position = self.ring.try_publish(payload)
        assert (position is not None) == fits
        if position is not None:
            assert position == self.ring.written
            self.waiting.append(payload)
            self.n_published += 1

    @rule(max_bytes=st.integers(0, CAPACITY))
    def take(self, max_bytes: int) -> None:
        payloads = [bytes(payload) for payload in self.ring.take(max_bytes)]
        assert bool(payloads) == bool(self.waiting)
        assert len(payloads) <= 1 or sum(map(len, payloads)) <= max_bytes
        assert payloads == [self.waiting.popleft() for _ in payloads]
        self.taken.extend(payloads)

    @rule()
    def commit(self) -> None:
        self.ring.commit()
        self.taken.clear()

    @rule()
    def consumer_dies(self) -> None:
        self.ring.reset_consumer()
        self.waiting.extendleft(reversed(self.taken))
        self.taken.clear()

    @rule(junk=st.integers(0, 255))
    def producer_dies_within_a_frame(self, junk: int) -> None:
        """Whatever it was about to write: anything may stand beyond `written`, up to `committed` plus capacity."""
        for position in range(self.ring.written, self.ring.committed + CAPACITY):
            self.ring._frames[position % CAPACITY] = junk

    @invariant()
    def cursors_are_in_order(self) -> None:
        self.ring.check()

    def teardown(self) -> None:
        self.take(CAPACITY * 2)
        assert not self.waiting


TestRingModel = RingModel.TestCase
TestRingModel.settings = settings(stateful_step_count=40)
