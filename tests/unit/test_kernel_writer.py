"""The compiled kernel merges ring frames and packs appends as Python does."""

import random
from itertools import chain
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from channelindex import blocks, kernel
from channelindex.errors import IndexCorrupt
from channelindex.model import Entry
from channelindex.stores.active import ActiveBlock
from channelindex.stores.base import ChannelAppend
from channelindex.stores.block_writer import BlindAppend, blind_appends
from channelindex.stores.redis.keys import Keys
from channelindex.stores.redis.writer import RedisBlocks
from tests.fuzz.mutation import mutated
from tests.support.kernel_pairs import needs_kernel, using
from workers.pipeline.frames import Merged, RingFrame, merge_payloads, pack_frames

GROUPS = st.sampled_from(["0123456789abcdef", "fedcba9876543210", ""])
CHANNELS = st.sampled_from(["", "a", "b", "é" * 20, "c" * 31, "c" * 32, "d" * 255, "e" * 256, "f" * 65_535])
NUMBERS = st.sampled_from([0, 1, 9, 10, 127, 128, 255, 256, 65_535, 65_536, 1 << 32, (1 << 64) - 1])
SECTIONS = st.dictionaries(CHANNELS, st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=3), max_size=5)
PRINCIPALS = st.lists(st.text(max_size=40), max_size=20)
ROUNDS = st.tuples(NUMBERS, GROUPS, SECTIONS, PRINCIPALS)


@pytest.fixture(autouse=True)
def _kernel() -> None:
    needs_kernel()


def merged_by(mode: str, rings: list[tuple[int, list[bytes]]], stale: set[int]) -> Merged | str:
    """The batch, or why there is none."""
    with using(mode):
        try:
            views = [(least, [memoryview(payload) for payload in payloads]) for least, payloads in rings]
            return merge_payloads(views, stale, kernel.chosen())
        except ValueError as error:  # of msgspec, or of what is no UTF-8
            return str(error)


def assert_equal(rings: list[tuple[int, list[bytes]]], stale: set[int]) -> Merged | str:
    python, compiled = (merged_by(mode, rings, stale) for mode in (kernel.OFF, kernel.AUTO))
    assert python == compiled
    if isinstance(compiled, Merged):
        assert {type(append) for append in compiled.appends} <= {ChannelAppend}
    return python


@given(rounds=st.lists(ROUNDS, max_size=6), least=NUMBERS, stale=st.sets(NUMBERS, max_size=2))
def test_batches_of_any_rounds_are_equal(rounds: Any, least: int, stale: set[int]) -> None:
    payloads = [
        payload
        for epoch, group, sections, principals in rounds
        for payload in pack_frames(epoch, group, sections, principals, 1 << 20)
    ]
    assert_equal([(least, payloads[::2]), (0, payloads[1::2])], stale)


def test_more_groups_than_the_kernel_counts_are_merged_too() -> None:
    payloads = [payload for number in range(70) for payload in pack_frames(number, "g", {"a": [b"x"]}, [], 1000)]
    found = assert_equal([(0, payloads * 2)], set())
    assert isinstance(found, Merged)
    assert len(found.appends) == 70


@pytest.mark.parametrize("seed", range(20))
def test_damaged_payloads_are_never_merged_otherwise(seed: int) -> None:
    chance = random.Random(seed)
    seeds = [
        *pack_frames(7, "0123456789abcdef", {"a": [b"x" * 40], "é": [b"y" * 300]}, ["_sync:user:é"], 1 << 20),
        msgspec.msgpack.encode(RingFrame(1 << 40, "g", [("c" * 300, b"z" * 70_000)], ["p"] * 20)),
        msgspec.msgpack.encode([1, "g", [], [], "more"]),
    ]
    for _ in range(100):
        assert_equal([(0, [mutated(chance, seeds), chance.choice(seeds)])], {8})


CLOCK_FRAMES = st.one_of(
    st.tuples(
        st.just(blocks.ENTRIES),
        st.lists(
            st.builds(
                Entry,
                st.sampled_from([0, 1, 63, 64, 1023, 65_535]),
                NUMBERS,
                st.binary(max_size=255),
                st.sampled_from(["1-a", "7-" + "0a" * 16, "x" * 254]),
                st.just(0),
            ),
            max_size=5,
        ).map(lambda entries: b"".join(map(blocks.pack_entry, entries))),
    ),
    st.tuples(
        st.just(blocks.HEADER), st.dictionaries(st.integers(0, 65_535), NUMBERS, max_size=5).map(blocks.pack_pairs)
    ),
)


def clock_by_python(frames: bytes) -> bytes | None:
    try:
        return blocks.pack_clock(frames)
    except IndexCorrupt:
        return None


@given(parts=st.lists(CLOCK_FRAMES, max_size=4), seed=st.integers(0, 1 << 32))
def test_clocks_are_equal_and_damage_is_left_to_python(parts: list[tuple[int, bytes]], seed: int) -> None:
    module = kernel._found().compiled
    assert module is not None
    frames = b"".join(blocks.pack_frame(kind, 7, body) for kind, body in parts)
    assert module.pack_clock(frames) == clock_by_python(frames) is not None
    if frames:
        damaged = mutated(random.Random(seed), [frames])
        assert module.pack_clock(damaged) == clock_by_python(damaged)
    for kind, body in parts:  # a checksum that fits what is cut off within
        cut = blocks.pack_frame(kind, 7, body[: len(body) - seed % 30])
        assert module.pack_clock(cut) == clock_by_python(cut)


ENTRIES = st.binary(max_size=400) | st.sampled_from([b"x" * 5000, b""])
KNOWN = st.lists(st.tuples(CHANNELS, GROUPS, NUMBERS, ENTRIES, NUMBERS), max_size=12)


@given(given_=KNOWN, most=st.integers(1, 5), most_bytes=st.sampled_from([1, 300, 6000]))
def test_frames_of_blocks_and_their_growth_are_equal(given_: Any, most: int, most_bytes: int) -> None:
    module = kernel._found().compiled
    assert module is not None
    results = []
    for pack in (blind_appends, module.blind_appends):
        actives = [ActiveBlock(epoch, number, 5, 0, 1 << 16) for _, _, epoch, _, number in given_]
        appends = [ChannelAppend(*each[:4]) for each in given_]
        known = [*zip(appends, actives, strict=True)]
        calls: list[list[BlindAppend]] = []
        while sum(map(len, calls)) < len(known):
            calls.append(pack(known, sum(map(len, calls)), most, most_bytes))
            assert calls[-1], "each call takes something"
        results.append((calls, [active.size for active in actives]))
    assert results[0] == results[1]
    for _, _, _, frame in chain.from_iterable(results[1][0]):
        assert [kind for kind, _, _ in blocks.iter_frames(frame)] == [blocks.ENTRIES]


class LinkOfKind:
    """A link that is asked for nothing but its kind."""

    def __init__(self, *, spans_slots: bool) -> None:
        self.spans_slots = spans_slots


@given(
    appends=st.lists(st.tuples(CHANNELS | st.text(max_size=9), GROUPS, NUMBERS, ENTRIES), max_size=30),
    spans_slots=st.booleans(),
)
def test_arguments_for_redis_are_equal(appends: list[BlindAppend], spans_slots: bool) -> None:
    calls = []
    for mode in (kernel.OFF, kernel.AUTO):
        writer = RedisBlocks.__new__(RedisBlocks)
        writer._keys = Keys("index")
        writer._link = LinkOfKind(spans_slots=spans_slots)  # type: ignore[assignment]  # of all that it has, this
        with using(mode):
            writer._compiled = kernel.chosen()
        calls.append(writer._append_calls(appends))
    if appends or not spans_slots:
        assert calls[0] == calls[1]
