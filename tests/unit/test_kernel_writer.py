"""The compiled kernel merges ring frames and packs appends as Python does."""

import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from channelindex import blocks, kernel
from channelindex.errors import IndexCorrupt
from channelindex.model import Entry
from channelindex.redis.link import PackedCall
from channelindex.stores.active import ActiveBlock, ActiveBlocks, LocatingAppend, Location, learn
from channelindex.stores.base import ChannelAppend
from channelindex.stores.block_writer import calls_of, full_at, sort
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


@pytest.mark.parametrize("size", [0, 1, 15, 16, 31, 32, 33, 127, 128, 129, 191, 1_000, 70_001])
@pytest.mark.parametrize("before", [0, 1, 0xFFFFFFFF])
def test_a_checksum_is_that_of_zlib_whatever_the_size_and_where_it_lies(size: int, before: int) -> None:
    data = random.Random(size).randbytes(size + 16)
    with using(kernel.AUTO):
        compiled: Any = kernel.chosen()
    for start in (0, 1, 7, 15):
        part = memoryview(data)[start : start + size]
        assert compiled.crc32(part, before) == zlib.crc32(part, before)


def merged_by(mode: str, rings: list[tuple[int, list[bytes]]], stale: set[int]) -> Merged | str:
    """The batch, or why there is none."""
    with using(mode):
        try:
            views = [(least, [memoryview(payload) for payload in payloads]) for least, payloads in rings]
            merged = merge_payloads(views, stale, kernel.chosen())
            return merged._replace(appends=[*merged.appends])
        except ValueError as error:  # of msgspec, or of what is no UTF-8
            return str(error)


def assert_equal(rings: list[tuple[int, list[bytes]]], stale: set[int]) -> Merged | str:
    python, compiled = (merged_by(mode, rings, stale) for mode in (kernel.OFF, kernel.AUTO))
    assert python == compiled
    if isinstance(compiled, Merged):
        assert {type(append) for append in compiled.appends} <= {ChannelAppend}
        assert compiled.n_bytes == sum(len(append.entries) for append in compiled.appends)
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
APPENDS = st.lists(
    st.builds(ChannelAppend, CHANNELS | st.text(max_size=9), GROUPS, st.sampled_from([1, 2, (1 << 64) - 1]), ENTRIES),
    max_size=12,
)
LOCATIONS = st.none() | st.builds(
    Location,
    NUMBERS,
    st.integers(0, 1 << 40),
    st.integers(0, 1 << 17),
    st.sampled_from([0, 0, 100, 5000, 1 << 30]),
)


class Lookups(NamedTuple):
    """The two maps of active blocks: a kernel's and Python's."""

    compiled: Any
    python: ActiveBlocks

    @classmethod
    def of(cls, limit: int) -> "Lookups":
        return cls(module().ActiveBlocks(limit, ActiveBlock, LocatingAppend), ActiveBlocks(limit))

    def both(self) -> tuple[Any, Any]:
        return self.compiled, self.python


def module() -> Any:
    found = kernel._found().compiled
    assert found is not None
    return found


def fields(active: ActiveBlock | None) -> list[int] | None:
    return None if active is None else [getattr(active, name) for name in ActiveBlock.__struct_fields__]


CLOCK_ENTRIES = st.lists(
    st.builds(
        Entry, st.sampled_from([0, 1, 63, 64, 1023, 65_535]), NUMBERS, st.just(b"key"), st.just("1-a"), st.just(0)
    ),
    min_size=2,
    max_size=5,
).map(lambda entries: b"".join(map(blocks.pack_entry, entries)))


@given(appended=st.lists(CLOCK_ENTRIES, min_size=1, max_size=6), after_move=st.lists(CLOCK_ENTRIES, max_size=3))
def test_a_block_is_summed_up_to_the_clock_of_its_frames(appended: list[bytes], after_move: list[bytes]) -> None:
    table = module().ActiveBlocks(10, ActiveBlock, LocatingAppend, 1 << 20)
    frames = [blocks.pack_frame(blocks.ENTRIES, 7, entries) for entries in appended]
    begin_group(table, appended[0])
    for entries in appended[1:]:
        assert len(sorted_by(table, [ChannelAppend("a", "g", 7, entries)], 1 << 62)[0]) == 1
    ((_, found),) = table.sort(module().batch_of([ChannelAppend("a", "g", 7, b"")], ChannelAppend), 1)[1]
    assert found.summed == (0, 3, 0, blocks.pack_clock(b"".join(frames)))
    table.put(("a", "g"), ActiveBlock(7, 5, 0, 0, 9, (4, 4, 2, found.summed[3])), b"".join(after_move))
    frames += [blocks.pack_frame(blocks.ENTRIES, 7, entries) for entries in after_move]
    assert table.get(("a", "g")).summed == (4, 4, 2, blocks.pack_clock(b"".join(frames)))


def begin_group(table: Any, entries: bytes, size: int = 0) -> ActiveBlock:
    """What *table* knows of a block 3 that an append began, or that has *size* bytes since."""
    table.drop(("a", "g"))
    unknown = table.sort(module().batch_of([ChannelAppend("a", "g", 7, entries)], ChannelAppend), 1)[2]
    table.learn(unknown, [Location(3, size or 2 * blocks.FRAME_HEAD_BYTES + len(entries), 0)], 1 << 16, full_at)
    block: ActiveBlock = table.get(("a", "g"))
    return block


@given(appended=st.lists(CLOCK_ENTRIES, min_size=1, max_size=6))
def test_of_a_block_that_was_found_what_comes_since_is_noted(appended: list[bytes]) -> None:
    table = module().ActiveBlocks(10, ActiveBlock, LocatingAppend, 1 << 20)
    frames = [blocks.pack_frame(blocks.ENTRIES, 7, entries) for entries in appended]
    found = begin_group(table, appended[0], size=1000 + len(frames[0]))
    for entries in appended[1:]:
        assert len(sorted_by(table, [ChannelAppend("a", "g", 7, entries)], 1 << 62)[0]) == 1
    found = table.get(("a", "g"))
    assert (found.summed, found.noted) == (None, (1000, blocks.pack_clock(b"".join(frames))))
    assert found.size == 1000 + sum(map(len, frames))
    table.put(("a", "g"), ActiveBlock(7, 5, 0, 0, 9, (4, 4, 2, b"")))
    assert table.get(("a", "g")).noted is None


@pytest.mark.parametrize("most_sum_bytes", [0, 1 << 20])
def test_the_kernel_remembers_what_is_learnt_of_a_list_of_appends_too(most_sum_bytes: int) -> None:
    """As of those of a batch that was split, or whose directory did not move."""
    table = module().ActiveBlocks(10, ActiveBlock, LocatingAppend, most_sum_bytes)
    entries = b"".join(blocks.pack_entry(Entry(1, seqno, b"key", "1-a", 0)) for seqno in (1, 2))
    frame = blocks.pack_frame(blocks.ENTRIES, 7, entries)
    size = blocks.FRAME_HEAD_BYTES + len(frame)
    appends = [LocatingAppend("a", "g", 7, b"", frame), LocatingAppend("b", "g", 6, b"", frame)]
    assert learn(table, appends, [Location(3, size, 0), None], 1 << 16, full_at) == {6}
    found = table.get(("a", "g"))
    assert (found.epoch, found.number, found.size, found.upto, found.limit) == (7, 3, size, 0, 1 << 16)
    assert found.summed == ((0, 3, 0, blocks.pack_clock(frame)) if most_sum_bytes else None)
    assert table.get(("b", "g")) is None


def test_the_first_move_of_a_block_that_was_found_may_be_later() -> None:
    two = b"".join(blocks.pack_entry(Entry(vb, 9, b"k", "1-a", 0)) for vb in range(2))
    table = module().ActiveBlocks(10, ActiveBlock, LocatingAppend, 1 << 20)
    for size, tail_bytes, n_due in ((1000, 500, 1), (999, 500, 0), (1000, 501, 0)):
        assert begin_group(table, two, size=size).noted is not None
        assert len(sorted_by(table, [ChannelAppend("a", "g", 7, two)], tail_bytes)[1]) == n_due
    begun = begin_group(table, two).size
    assert len(sorted_by(table, [ChannelAppend("a", "g", 7, two)], begun)[1]) == 1


def test_a_sum_is_kept_only_of_what_is_known_in_full_and_comes_often() -> None:
    one, two = (b"".join(blocks.pack_entry(Entry(vb, 9, b"k", "1-a", 0)) for vb in range(n)) for n in (1, 2))
    table = module().ActiveBlocks(10, ActiveBlock, LocatingAppend, 1000)
    assert begin_group(table, two).summed is not None
    assert begin_group(table, one).summed is None, "it may not be written again for hours"
    assert begin_group(table, two, size=1000).summed is None, "somebody else was there before"
    assert begin_group(table, one, size=1000).noted is None
    assert begin_group(table, two[:-1]).summed is None
    assert begin_group(table, two).summed is not None
    sorted_by(table, [ChannelAppend("a", "g", 7, two + b"damaged")], 1 << 62)
    assert table.get(("a", "g")).summed is None
    assert begin_group(table, two * 40).summed is None, "800 bytes of pairs, of which each may be of another vbucket"
    assert begin_group(table, two).summed is not None
    many = ActiveBlock(7, 5, 0, 0, 9, (0, 0, 0, blocks.pack_pairs(dict.fromkeys(range(60), 1))))
    table.put(("other", "g"), many)
    assert table.get(("other", "g")).summed == many.summed
    table.put(("third", "g"), many)
    assert table.get(("third", "g")).summed is None, "of all there are more than 1000 bytes"
    assert table.get(("a", "g")).summed is not None
    table.clear()
    table.put(("third", "g"), many)
    assert table.get(("third", "g")).summed == many.summed
    with pytest.raises(TypeError):
        table.put(("a", "g"), ActiveBlock(7, 5, 0, 0, 9, summed=[0, 0]))  # type: ignore[arg-type]  # for a test
    for nothing in (module().ActiveBlocks(10, ActiveBlock, LocatingAppend), ActiveBlocks(10)):
        nothing.put(("a", "g"), ActiveBlock(7, 5, 0, 0, 9))
        assert getattr(nothing.get(("a", "g")), "summed", 0) is None


def sorted_by(blocks_: Any, appends: list[ChannelAppend], tail_bytes: int) -> Any:
    if isinstance(blocks_, ActiveBlocks):
        known, due, unknown = sort(blocks_, appends, tail_bytes)
    else:
        known, due, unknown = blocks_.sort(module().batch_of(appends, ChannelAppend), tail_bytes)
    return known, [(append, fields(active)) for append, active in due], unknown


@given(batches=st.lists(st.tuples(APPENDS, st.data()), min_size=1, max_size=4), limit=st.integers(1, 8))
@settings(suppress_health_check=[HealthCheck.data_too_large, HealthCheck.too_slow])
def test_what_is_known_of_blocks_is_equal_after_any_batches(batches: Any, limit: int) -> None:
    lookups = Lookups.of(limit)
    for appends, data in batches:
        tail_bytes = data.draw(st.sampled_from([1, 300, 16 << 10, 1 << 62]))
        compiled, python = (sorted_by(each, appends, tail_bytes) for each in lookups.both())
        assert [*map(list, compiled)] == [*map(list, python)]
        calls = compiled[2].calls(3, 700)
        locations = [[data.draw(LOCATIONS) for _ in call] for call in calls]
        stale = set[int]()
        for call, found in zip(calls, locations, strict=True):
            stale |= lookups.compiled.learn(call, found, 1 << 16, full_at)
        flat = [*chain.from_iterable(calls)]
        assert learn(lookups.python, flat, [*chain.from_iterable(locations)], 1 << 16, full_at) == stale
        dropped = data.draw(st.sampled_from([*{append[:2] for append in appends}, ("?", "")]))
        for each in lookups.both():
            each.drop(dropped)
        assert len(lookups.compiled) == len(lookups.python)
        for append in appends:
            assert len({repr(fields(each.get(append[:2]))) for each in lookups.both()}) == 1


def test_a_block_comes_back_from_the_kernel_as_it_was_put_and_is_forgotten_with_all_others() -> None:
    for each in Lookups.of(10).both():
        each.put(("a", "g"), ActiveBlock(1, 2, 3, 4, 5))
        assert fields(each.get(("a", "g"))) == fields(ActiveBlock(1, 2, 3, 4, 5))
        each.clear()
        assert each.get(("a", "g")) is None
        assert len(each) == 0


@pytest.mark.parametrize("limit", [1, 2, 10, 300])
def test_the_longest_unused_blocks_are_forgotten_alike(limit: int) -> None:
    chance, lookups = random.Random(limit), Lookups.of(limit)
    for number in range(3000):
        key = f"channel {int(chance.expovariate(1 / limit))}", "g"
        put = chance.random() < 0.5
        found = [
            each.put(key, ActiveBlock(1, number, 0, 0, 9)) if put else fields(each.get(key)) for each in lookups.both()
        ]
        assert found[0] == found[1]
        assert len(lookups.compiled) == len(lookups.python)


def selections(appends: list[ChannelAppend]) -> tuple[Any, Any]:
    """The same appends as blind ones, to block 7, and as such that locate."""
    known: Any = module().ActiveBlocks(100, ActiveBlock, LocatingAppend)
    for channel, group, epoch, _ in appends:
        known.put((channel, group), ActiveBlock(epoch, 7, 0, 0, 1 << 60))
    batch = module().batch_of(appends, ChannelAppend)
    unknown = module().ActiveBlocks(1, ActiveBlock, LocatingAppend)
    return known.sort(batch, 1 << 62)[0], unknown.sort(batch, 1)[2]


@given(appends=APPENDS, most_bytes=st.sampled_from([1, 300, 6000]))
def test_each_call_takes_what_it_may_and_all_is_taken(appends: list[ChannelAppend], most_bytes: int) -> None:
    for selection in selections(appends):
        calls = [list(call) for call in selection.calls(500, most_bytes)]
        assert [sorted(call) for call in calls] == [sorted(call) for call in calls_of([*selection], 500, most_bytes)]
        for append in chain.from_iterable(calls):
            assert [kind for kind, _, _ in blocks.iter_frames(append[-1])] == [blocks.ENTRIES]


class LinkOfKind:
    """A link that notes what it is to send, and answers with sizes: every other block had nothing before."""

    def __init__(self, *, spans_slots: bool) -> None:
        self.spans_slots = spans_slots
        self.sent: list[Sequence[PackedCall]] = []

    def count_packed(self, calls: Sequence[PackedCall], name_of: Callable[[int], str]) -> bytes:
        self.sent.append(calls)
        sizes = [size for _, commands, _ in calls for size in appended_sizes(commands)]
        assert len(sizes) == sum(count for _, _, count in calls)
        assert all(name_of(number).startswith("ci:index:{") for number in range(len(sizes)))
        return b"".join(b":%d\r\n" % (size + number % 2 * 9) for number, size in enumerate(sizes))


def appended_sizes(commands: bytes) -> Iterator[int]:
    """The sizes of the values of APPENDs, as a server reads them."""
    while commands:
        head, _, commands = commands.partition(b"\r\n")
        assert head == b"*3"
        values = []
        for _ in range(3):
            head, _, commands = commands.partition(b"\r\n")
            values.append(commands[: int(head[1:])])
            assert commands[int(head[1:]) :].startswith(b"\r\n")
            commands = commands[int(head[1:]) + 2 :]
        assert values[0] == b"APPEND"
        yield len(values[2])


@given(appends=APPENDS, spans_slots=st.booleans())
def test_arguments_for_redis_are_equal(appends: list[ChannelAppend], spans_slots: bool) -> None:
    writer = RedisBlocks.__new__(RedisBlocks)
    writer._keys = Keys("index")
    writer._link = LinkOfKind(spans_slots=spans_slots)  # type: ignore[assignment]  # of all that it has, this
    blind_, locating_ = selections(appends)
    for call in blind_.calls(500, 1 << 20):
        assert writer._unexpected_of_selection(call) == writer._unexpected_of_list([*call])
        compiled, python = writer._link.sent[-2:]  # type: ignore[attr-defined]
        assert [item[1:] for item in compiled] == [item[1:] for item in python]
        assert spans_slots or compiled == python
    for call in locating_.calls(500, 1 << 20):
        compiled, order = writer._locating_calls(call)
        assert (compiled, [*order]) == writer._locating_calls([*call])


def test_what_is_no_append_is_refused() -> None:
    table = module().ActiveBlocks(1, ActiveBlock, LocatingAppend)
    for wrong in ([("a", "g", 1)], [("a", "g", -1, b"")], [("a", "g", 1, "")], [(1, "g", 1, b"")], [None]):
        with pytest.raises((TypeError, OverflowError)):
            module().batch_of(wrong, ChannelAppend)
    with pytest.raises(TypeError):
        module().batch_of([], int)
    with pytest.raises(TypeError):
        table.sort([], 1)
    selection = table.sort(module().batch_of([ChannelAppend("a", "g", 1, b"x")], ChannelAppend), 1)[2]
    with pytest.raises(ValueError, match="a location for each"):
        table.learn(selection, [], 1, full_at)
    with pytest.raises((TypeError, OverflowError)):
        table.learn(selection, [(1, -2, 3, 4)], 1, full_at)
    with pytest.raises(ValueError, match="each call takes something"):
        selection.calls(0, 1)
    with pytest.raises(TypeError):
        module().Batch()
    blind_, _ = selections([ChannelAppend("a", "g", 1, b"x")])
    (call,) = blind_.calls(1, 1)
    for wrong_replies in (b"", b":1", b":1\r", b"1\r\n", b":\r\n", b":1\r\n:1\r\n", b":-1\r\n", b":1x\r\n"):
        with pytest.raises(ValueError, match="append"):
            call.unexpected(wrong_replies)
