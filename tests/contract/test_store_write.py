"""The write half of every index store: appends, rotation, refusal, and what may happen twice or late."""

import itertools
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from channelindex.blocks import ENTRIES, HEADER, fold_clock, pack_frame
from channelindex.epochs import new_record
from channelindex.errors import OutcomeUnknown, Transient
from channelindex.model import Entry
from channelindex.stores.base import BlockRef
from channelindex.stores.couchbase.directories import Directories
from channelindex.stores.couchbase.keys import Keys as CouchbaseKeys
from channelindex.stores.redis.keys import Keys
from channelindex.stores.redis.store_link import open_link
from tests.support.node import until
from tests.support.stores import (
    GROUP,
    Backend,
    FaultyOperations,
    all_entries,
    append,
    check_headers,
    entry,
    stored_blocks,
    write_until_done,
)

OTHER_GROUP = "ffeeddcc99887766"
SEQNOS = [1, 2**24 - 1, 2**24, 2**24 + 1, 2**32, 2**48, 2**53 + 1, 2**63, 2**64 - 1]


def _stored(backend: Backend, channel: str = "A") -> list[tuple[int, int, int]]:
    return [(epoch, each.vb, each.seqno) for epoch, each in all_entries(backend.reader(), channel)]


def test_unknown_channel_gets_block_zero_with_an_empty_header(backend):
    assert backend.writer().write([append("A", 1, entry(0, 5), entry(3, 9))]) == set()
    ((block,),) = stored_blocks(backend.reader(), "A").values()
    assert block.header == {}
    assert [each for _, each in block.entries] == [entry(0, 5), entry(3, 9)]


def test_state_has_active_block_and_clock_and_the_counter_rises(backend):
    writer = backend.writer()
    writer.write([append("A", 1, entry(0, 5)), append("B", 1, entry(1, 1))])
    (before,) = backend.reader().channel_states(["A"])
    writer.write([append("A", 1, entry(0, 7), entry(2, 3))])
    state, absent = backend.reader().channel_states(["A", "nobody's"])
    assert absent is None
    assert state is not None
    assert state.counter > before.counter > 0
    assert state.active_by_group == {GROUP: 0}
    assert fold_clock(state.groups[GROUP].frames) == {0: 7, 2: 3}


def test_one_append_moves_block_clock_and_counter_together(backend):
    """Block, clock and counter, in this order, and none without the others: each is made of the same bytes."""
    writer, reader = backend.writer(block_bytes=400), backend.reader()
    told: list[tuple[int, int, int]] = []
    done = threading.Event()

    def look():
        while not done.is_set():
            (state,) = reader.channel_states(["A"])
            if state is None:
                continue
            clock = fold_clock(state.groups[GROUP].frames).get(0, 0)
            newest = max((each.seqno for _, each in all_entries(reader, "A")), default=0)  # read later, so not older
            told.append((newest, clock, state.counter))

    def has_looked(n_before):
        return looking.done() or len(told) > n_before

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        try:
            for seqno in itertools.count(1):
                writer.write([append("A", 1, entry(0, seqno))])
                if looking.done() or (seqno >= 150 and len(told) >= 20):
                    break
                if (
                    seqno >= 150
                ):  # each look reads all that there is: who goes on writing meanwhile makes them ever longer
                    until(partial(has_looked, len(told)), "another look")
        finally:
            done.set()
        looking.result()
    assert told
    assert all(newest >= clock for newest, clock, _ in told)
    assert any(clock for _, clock, _ in told)
    assert all(before <= after for before, after in itertools.pairwise(counter for _, _, counter in told))
    assert all(b[2] > a[2] for a, b in itertools.pairwise(told) if b[1] > a[1])


@pytest.mark.parametrize("seqno", SEQNOS)
def test_seqnos_keep_all_their_bits(backend, seqno):
    writer = backend.writer(block_bytes=1)
    for _ in range(3):
        writer.write([append("A", 1, entry(0, seqno))])
    blocks = stored_blocks(backend.reader(), "A")[GROUP]
    assert [block.header.get(0) for block in blocks] == [None, seqno, seqno]
    assert {each.seqno for _, each in all_entries(backend.reader(), "A")} == {seqno}


@pytest.mark.parametrize("number", [2**24 - 1, 2**24, 2**32, 2**48])
def test_block_numbers_keep_all_their_bits(backend, number):
    """The directory is set to a high block by hand; the writer adopts it and rotates to the next one."""
    backend.writer().write([append("A", 1, entry(0, 1))])
    _set_active_block(backend, "A", number)
    writer = backend.writer(block_bytes=1)
    writer.write([append("A", 1, entry(0, 2))])
    writer.write([append("A", 1, entry(0, 3))])
    (state,) = backend.reader().channel_states(["A"])
    assert state is not None
    assert state.active_by_group == {GROUP: number + 1}


def _set_active_block(backend: Backend, channel: str, number: int) -> None:
    if backend.memory:
        directory = backend.memory.directories[channel]
        directory[GROUP] = directory[GROUP]._replace(number=number)
        backend.memory.blocks[BlockRef(channel, GROUP, number)] = bytearray(pack_frame(HEADER, 1, b""))
        return
    if backend.url.startswith("couchbase"):
        link, keys = backend.link(), CouchbaseKeys(backend.index_name)
        directories = Directories(link, keys)
        found = directories.read([channel])
        groups = found[channel].directory.active_by_group
        groups[GROUP] = groups[GROUP]._replace(number=number)
        directories.write(found)
        link.insert({keys.block(channel, GROUP, number): pack_frame(HEADER, 1, b"")})
        return
    key = Keys(backend.index_name).channel(channel)
    with open_link(backend.url, OutcomeUnknown) as redis:
        _, _, rest = redis.execute("HGET", key, "g" + GROUP).partition(b":")
        redis.execute("HSET", key, "g" + GROUP, b"%d:%s" % (number, rest))
        redis.execute("SET", Keys(backend.index_name).block(channel, GROUP, number), pack_frame(HEADER, 1, b""))


def test_groups_of_a_channel_have_blocks_of_their_own_and_one_counter(backend):
    writer = backend.writer()
    both = [append("A", 1, entry(0, 1)), append("A", 2, entry(9, 1), group=OTHER_GROUP)]
    writer.write(both)
    before = backend.reader().channel_states(["A"])[0].counter
    writer.write(both)
    (state,) = backend.reader().channel_states(["A"])
    assert state.active_by_group == {GROUP: 0, OTHER_GROUP: 0}
    assert state.counter > before
    assert {group: len(blocks[0].entries) for group, blocks in stored_blocks(backend.reader(), "A").items()} == {
        GROUP: 2,
        OTHER_GROUP: 2,
    }


def test_full_block_is_followed_by_one_that_begins_with_the_channel_clock(backend):
    writer = backend.writer(block_bytes=150)
    for seqno in range(1, 21):
        writer.write([append("A", 1, entry(seqno % 3, seqno))])
    blocks = stored_blocks(backend.reader(), "A")[GROUP]
    assert len(blocks) > 3
    clock: dict[int, int] = {}
    for block in blocks:
        assert block.header == clock
        clock |= {each.vb: each.seqno for _, each in block.entries}
    (state,) = backend.reader().channel_states(["A"])
    assert fold_clock(state.groups[GROUP].frames) == clock
    assert len(state.groups[GROUP].frames) < 300


def test_many_channels_go_in_several_calls(backend, monkeypatch):
    monkeypatch.setattr("channelindex.stores.block_writer.MAX_CALL_CHANNELS", 7)
    monkeypatch.setattr("channelindex.stores.block_writer.MAX_BLIND_APPENDS", 10)
    operations = FaultyOperations(backend.operations())
    writer = backend.writer(operations=operations)
    names = [f"channel-{number}" for number in range(40)]
    for seqno in (1, 2):
        writer.write([append(name, 1, entry(0, seqno)) for name in names])
    assert operations.calls == ["append_and_locate"] * 6 + ["append"] * 4
    assert sorted(backend.reader().channels()) == sorted(names)
    assert all(_stored(backend, name) == [(1, 0, 1), (1, 0, 2)] for name in names)


def test_large_appends_go_in_several_calls(backend, monkeypatch):
    monkeypatch.setattr("channelindex.stores.block_writer.MAX_CALL_BYTES", 100)
    operations = FaultyOperations(backend.operations())
    writer = backend.writer(operations=operations)
    batch = [append(name, 1, *(entry(0, seqno) for seqno in range(1, 10))) for name in "ABC"]
    writer.write(batch)
    writer.write(batch)
    assert operations.calls == ["append_and_locate"] * 3 + ["append"] * 3


def test_known_channels_are_appended_blindly(backend):
    operations = FaultyOperations(backend.operations())
    writer = backend.writer(operations=operations)
    for seqno in range(1, 5):
        writer.write([append("A", 1, entry(0, seqno))])
    assert operations.calls == ["append_and_locate", "append", "append", "append"]


def test_next_epoch_of_the_same_writer_asks_again(backend):
    """Between our two epochs another owner may have rotated the block that we remember."""
    ours, theirs = backend.writer(), backend.writer(block_bytes=1)
    ours.write([append("A", 1, entry(0, 1))])
    for seqno in (2, 3):
        theirs.write([append("A", 2, entry(0, seqno))])
    ours.write([append("A", 3, entry(0, 4))])
    blocks = stored_blocks(backend.reader(), "A")[GROUP]
    assert [[each.seqno for _, each in block.entries] for block in blocks] == [[1, 2], [3, 4]]


def test_restarted_writer_goes_on_in_the_active_block(backend):
    first = backend.writer(block_bytes=100)
    for seqno in range(1, 6):
        first.write([append("A", 1, entry(0, seqno))])
    n_blocks = len(stored_blocks(backend.reader(), "A")[GROUP])
    backend.writer(block_bytes=100).write([append("A", 1, entry(0, 6))])
    assert len(stored_blocks(backend.reader(), "A")[GROUP]) == n_blocks
    assert [seqno for _, _, seqno in _stored(backend)] == [1, 2, 3, 4, 5, 6]


def test_forgotten_channels_are_located_again(backend):
    operations = FaultyOperations(backend.operations())
    writer = backend.writer(remembered_blocks=8, operations=operations)
    names = [f"channel-{number}" for number in range(20)]
    for seqno in (1, 2, 3):
        for name in names:
            writer.write([append(name, 1, entry(0, seqno))])
    assert operations.calls.count("append") == 0
    assert all(_stored(backend, name) == [(1, 0, 1), (1, 0, 2), (1, 0, 3)] for name in names)


def test_an_append_to_an_unknown_block_by_an_older_epoch_is_refused(backend):
    backend.writer().write([append("A", 5, entry(0, 1))])
    stale = backend.writer().write([append("A", 4, entry(0, 2)), append("B", 4, entry(0, 2))], ["_sync:user:u"])
    assert stale == {4}
    assert _stored(backend) == [(5, 0, 1)]
    assert _stored(backend, "B") == [(4, 0, 2)]
    assert backend.reader().principal_counter("_sync:user:u") == 1


def test_refusal_is_per_group(backend):
    backend.writer().write([append("A", 5, entry(0, 1))])
    assert backend.writer().write([append("A", 4, entry(9, 2), group=OTHER_GROUP)]) == set()


def test_two_epochs_in_one_batch(backend):
    writer = backend.writer()
    assert writer.write([append("A", 1, entry(0, 1)), append("A", 2, entry(0, 2))]) == set()
    assert writer.write([append("A", 1, entry(0, 3)), append("A", 2, entry(0, 4))]) == {1}
    assert _stored(backend) == [(1, 0, 1), (2, 0, 2), (2, 0, 4)]


def test_zombie_cannot_rotate_once_a_newer_epoch_has_located_the_block(backend):
    zombie, owner = backend.writer(block_bytes=1), backend.writer(block_bytes=10_000)
    zombie.write([append("A", 1, entry(0, 1))])
    owner.write([append("A", 2, entry(0, 2))])
    assert zombie.write([append("A", 1, entry(0, 3))]) == {1}
    (block,) = stored_blocks(backend.reader(), "A")[GROUP]
    assert [each.seqno for _, each in block.entries] == [1, 2]


def test_zombies_blind_append_lands_where_it_knows_and_moves_no_block(backend):
    zombie, owner = backend.writer(), backend.writer(block_bytes=1)
    zombie.write([append("A", 1, entry(0, 1))])
    for seqno in (2, 3):
        owner.write([append("A", 2, entry(0, seqno))])
    assert zombie.write([append("A", 1, entry(0, 9))]) == set()
    blocks = stored_blocks(backend.reader(), "A")[GROUP]
    assert [[each.seqno for _, each in block.entries] for block in blocks] == [[1, 2, 9], [3]]


def test_late_append_never_lowers_the_clock(backend):
    zombie, owner = backend.writer(), backend.writer()
    zombie.write([append("A", 1, entry(0, 1))])
    owner.write([append("A", 2, entry(0, 20))])
    zombie.write([append("A", 1, entry(0, 2))])
    (state,) = backend.reader().channel_states(["A"])
    assert fold_clock(state.groups[GROUP].frames) == {0: 20}


def test_rotation_waits_while_somebody_else_appends(backend):
    """The header is made from the block as read; what came to the block since must not be missing in it."""
    operations = _AppendsBetween(backend.operations(), backend.writer())
    writer = backend.writer(block_bytes=1, operations=operations)
    operations.zombie.write([append("A", 1, entry(0, 1))])
    writer.write([append("A", 2, entry(0, 2))])
    operations.late_append = append("A", 1, entry(1, 7))
    writer.write([append("A", 2, entry(0, 3))])
    assert len(stored_blocks(backend.reader(), "A")[GROUP]) == 1
    writer.write([append("A", 2, entry(0, 4))])
    blocks = stored_blocks(backend.reader(), "A")[GROUP]
    assert [block.header for block in blocks] == [{}, {0: 3, 1: 7}]


class _AppendsBetween(FaultyOperations):
    """Lets a zombie append after the block was read and before the rotation."""

    def __init__(self, operations, zombie):
        super().__init__(operations)
        self.zombie = zombie
        self.late_append = None

    def groups(self, keys):
        states = self._operations.groups(keys)
        if self.late_append:
            self.zombie.write([self.late_append])
            self.late_append = None
        return states


def test_a_long_tail_moves_the_clock(backend):
    """Readers fetch no more than a part of the active block, and a clock that sums up all before it."""
    operations = _short_tails(backend, 200)
    moves_clocks = operations.tail_bytes == 200
    writer = backend.writer(operations=operations)
    for seqno in range(1, 41):
        writer.write([append("A", 1, entry(seqno % 3, seqno))])
        (state,) = backend.reader().channel_states(["A"])
        group = state.groups[GROUP]
        assert len(group.tail) < 300 or not moves_clocks
        assert fold_clock(group.frames) == {n % 3: n for n in range(1, seqno + 1)}
    assert group.directory.number == 0
    assert [seqno for _, _, seqno in _stored(backend)] == list(range(1, 41))
    assert (operations.calls.count("move") > 5) is moves_clocks


def _short_tails(backend: Backend, tail_bytes: int) -> FaultyOperations:
    """A store whose clocks move early. A bucket's never do: it gives out whole blocks only."""
    operations = FaultyOperations(backend.operations())
    if operations.tail_bytes < sys.maxsize:
        operations.tail_bytes = tail_bytes
    return operations


def _several(seqno: int) -> list[Entry]:
    return [entry(vb, seqno) for vb in range(3)]


def test_a_writer_that_was_alone_moves_directories_without_reading_them(backend):
    operations = _short_tails(backend, 200)
    writer = backend.writer(block_bytes=900, operations=operations)
    for seqno in range(1, 41):
        writer.write([append("A", 1, *_several(seqno))])
        check_headers(backend.reader(), "A", _no_records(), partition_width=4)
        (state,) = backend.reader().channel_states(["A"])
        assert fold_clock(state.groups[GROUP].frames) == dict.fromkeys(range(3), seqno)
    assert state.groups[GROUP].directory.number > 2
    assert ("groups" in operations.calls) is not operations.notices_others
    assert [seqno for _, _, seqno in _stored(backend)] == [seqno for seqno in range(1, 41) for _ in range(3)]


@pytest.mark.parametrize("block_bytes", [900, 65_536])
def test_a_writer_reads_once_what_was_in_a_block_that_it_found(backend, block_bytes):
    before = backend.writer(block_bytes)
    for seqno in range(1, 4):
        before.write([append("A", 1, entry(3 + seqno % 2, seqno))])
    operations = _short_tails(backend, 200)
    writer = backend.writer(block_bytes, operations=operations)
    for seqno in range(4, 41):
        writer.write([append("A", 2, *_several(seqno))])
        check_headers(backend.reader(), "A", _no_records(), partition_width=4)
        (state,) = backend.reader().channel_states(["A"])
        assert fold_clock(state.groups[GROUP].frames) == {**dict.fromkeys(range(3), seqno), 3: 2, 4: 3}
    if operations.notices_others:
        assert operations.calls.count("move") > 1
        assert operations.calls.count("groups") == 1


@pytest.mark.parametrize("block_bytes", [900, 65_536])
def test_a_clock_counts_what_somebody_else_appended_between_too(backend, block_bytes):
    """A former owner, who does not know it yet, comes at any time; a directory may not be moved within its frame."""
    chance = random.Random(block_bytes)
    operations, zombie = _short_tails(backend, 200), backend.operations()
    writer = backend.writer(block_bytes, operations=operations)
    written: dict[int, int] = {}
    last = 60 if operations.notices_others else 20
    for seqno in range(1, last):
        if chance.random() < 0.15:
            active = backend.reader().channel_states(["A"])[0].active_by_group[GROUP]
            foreign = append("A", 1, entry(3 + seqno % 2, seqno)).entries
            zombie.append([("A", GROUP, active, 0, pack_frame(ENTRIES, 1, foreign))])
            written[3 + seqno % 2] = seqno
        writer.write([append("A", 2, *_several(seqno))])
        written |= dict.fromkeys(range(3), seqno)
        (state,) = backend.reader().channel_states(["A"])
        assert fold_clock(state.groups[GROUP].frames) == written
        check_headers(backend.reader(), "A", _no_records(), partition_width=4)
    assert ("move" in operations.calls) is (operations.tail_bytes == 200 or block_bytes == 900)
    own = [seqno for epoch, vb, seqno in _stored(backend) if epoch == 2 and vb == 0]
    assert own == [*range(1, last)]


@pytest.mark.parametrize("fault", ["before", "after", "late", "twice"])
@pytest.mark.parametrize("position", range(3))
def test_a_sum_survives_no_error(backend, fault, position):
    """What was repeated, or comes late, is in a block once more than its writer counted."""
    operations = _short_tails(backend, 200)
    writer = backend.writer(block_bytes=900, operations=operations)
    last = 22 if operations.notices_others else 6
    for seqno in range(1, last):
        if seqno % 7 == 3:
            operations.next_faults = ["none"] * position + [fault]
        if seqno % 7 == 5:
            operations.next_faults.clear()
            for late in operations.late:
                late()
            operations.late.clear()
        write_until_done(writer, [append("A", 1, *_several(seqno))])
        check_headers(backend.reader(), "A", _no_records(), partition_width=4)
        (state,) = backend.reader().channel_states(["A"])
        assert fold_clock(state.groups[GROUP].frames) == dict.fromkeys(range(3), seqno)
    assert {seqno for _, _, seqno in _stored(backend)} == {*range(1, last)}


@pytest.mark.parametrize("fault", ["before", "after", "late", "twice"])
def test_a_move_of_the_clock_that_fails_or_is_late_changes_nothing(backend, fault):
    operations = _short_tails(backend, 100)
    writer = backend.writer(operations=operations)
    for seqno in (1, 2, 3):
        writer.write([append("A", 1, entry(0, seqno))])
    operations.next_faults = ["none", fault] if operations.tail_bytes == 100 else [fault]
    write_until_done(writer, [append("A", 1, entry(1, 4))])
    for late in operations.late:
        late()
    (state,) = backend.reader().channel_states(["A"])
    assert fold_clock(state.groups[GROUP].frames) == {0: 3, 1: 4}
    writer.write([append("A", 1, entry(2, 5))])
    (state,) = backend.reader().channel_states(["A"])
    assert fold_clock(state.groups[GROUP].frames) == {0: 3, 1: 4, 2: 5}
    assert state.counter == sum(len(block) for block in backend.reader().blocks([BlockRef("A", GROUP, 0)]))


def test_late_rotation_does_not_happen(backend):
    """Its reply was lost, its repetition went another way: it must not move the active block under blind appends."""
    operations = FaultyOperations(backend.operations())
    writer = backend.writer(block_bytes=1, operations=operations)
    writer.write([append("A", 1, entry(0, 1))])
    operations.next_faults = ["none", "late"]  # the block is read, the rotation is late
    with pytest.raises(Transient):
        writer.write([append("A", 1, entry(0, 2))])
    writer._block_bytes = 10_000
    writer.write([append("A", 1, entry(0, 2))])
    assert operations.late[0]() == [False]
    writer.write([append("A", 1, entry(0, 3))])
    reader = backend.reader()
    blocks = stored_blocks(reader, "A")[GROUP]
    assert [each.seqno for block in blocks for _, each in block.entries] == [1, 2, 3]
    check_headers(reader, "A", _no_records(), partition_width=4)


def test_late_append_to_an_unknown_block_is_there_once_more_and_moves_no_block(backend):
    operations = FaultyOperations(backend.operations())
    writer = backend.writer(block_bytes=1, operations=operations)
    operations.next_faults = ["late"]
    with pytest.raises(Transient):
        writer.write([append("A", 1, entry(0, 1))])
    writer.write([append("A", 1, entry(0, 1))])
    operations.late[0]()
    for seqno in (2, 3):
        writer.write([append("A", 1, entry(0, seqno))])
    reader = backend.reader()
    assert [seqno for _, _, seqno in _stored(backend)] == [1, 1, 2, 3]
    check_headers(reader, "A", _no_records(), partition_width=4)


def _no_records():
    return [new_record(first_vb, 4) for first_vb in range(0, 16, 4)]


@pytest.mark.parametrize("fault", ["before", "after"])
@pytest.mark.parametrize("position", range(6))
def test_failed_batch_is_complete_once_it_is_repeated(backend, fault, position):
    """Each call of a batch with blind appends, unknown blocks, a rotation and principals fails in turn."""
    operations = FaultyOperations(backend.operations())
    writer = backend.writer(block_bytes=60, operations=operations)
    writer.write([append("full", 1, entry(0, 1)), append("full", 1, entry(0, 1), group=OTHER_GROUP)])
    writer._block_bytes = 10_000
    writer.write([append("known", 1, entry(0, 1))])
    writer._block_bytes = 80
    operations.calls.clear()
    operations.next_faults = ["none"] * position + [fault]
    batch = [append("full", 1, entry(0, 2)), append("known", 1, entry(0, 2)), append("new", 1, entry(0, 2))]
    write_until_done(writer, batch, ["_sync:user:u"])
    for channel in ("full", "known", "new"):
        assert (1, 0, 2) in _stored(backend, channel)
        assert backend.reader().channel_states([channel])[0].counter >= 1
    assert backend.reader().principal_counter("_sync:user:u") >= 1


def test_principals_are_counted_each_and_in_sum(backend):
    writer = backend.writer()
    writer.write([], ["_sync:user:a", "_sync:role:b"])
    writer.write([], ["_sync:user:a"])
    reader = backend.reader()
    counters = [reader.principal_counter(key) for key in ("_sync:user:a", "_sync:role:b", "_sync:user:c", "")]
    assert counters == [2, 1, 0, 3]


def test_empty_batch_asks_nothing_of_the_store(backend):
    operations = FaultyOperations(backend.operations())
    assert backend.writer(operations=operations).write([]) == set()
    assert operations.calls == []


@pytest.mark.parametrize("channel", ["*", "a:b", "}:c:x", "{7}", "grün", "日本", "a b\nc", "x" * 2000, "c:", "[a]?"])
def test_any_channel_name_is_kept(backend, channel):
    backend.writer().write([append(channel, 1, entry(0, 1)), append("other", 1, entry(0, 2))])
    assert set(backend.reader().channels()) == {channel, "other"}
    assert _stored(backend, channel) == [(1, 0, 1)]
