"""The compactor's half of every store that is compacted, and what writers and readers find after a switch."""

import uuid
from typing import Any, NamedTuple

import pytest

from channelindex import epochs
from channelindex.blocks import HEADER, fold_clock, pack_frame
from channelindex.compaction import channel as compaction_channel
from channelindex.compaction import due as compaction_due
from channelindex.compaction.compactor import Compactor
from channelindex.compaction.due import MAX_GROUPS, Extent
from channelindex.errors import BlockGone, IndexCorrupt, RemovalsForgotten, StaleEpoch
from channelindex.model import DELETED, Checkpoint
from channelindex.reading.changes_reader import ChangesReader
from channelindex.settings import CompactionSettings
from channelindex.stores.base import COMPACT_PREFIX, NEVER_COMPACTED, BlockRef, Directory
from channelindex.stores.compacting import GroupChange, Output, Switch
from channelindex.stores.couchbase.keys import Keys as CouchbaseKeys
from tests.support.stores import (
    GROUP,
    META,
    Backend,
    all_entries,
    append,
    checkpoints,
    entry,
    stored_blocks,
    whole_records,
)

OTHER_GROUP = "ffeeddcc99887766"
OUTPUT = f"{COMPACT_PREFIX}0011"
SETTINGS = CompactionSettings(min_lag_s=1.0, dead_retention_s=1.0, grace_s=60.0)
_URL_FIXTURES = {"redis": "redis_url", "cluster": "cluster_url", "couchbase": "couchbase_url"}


class World(NamedTuple):
    """A store whose partition 0 is at epoch 2, and that of epoch 1 wrote channel A before."""

    backend: Backend
    owner: Any
    reader: Any
    store: Any

    def compactor(self, now_s: float = 1_000_000.0, settings: CompactionSettings = SETTINGS) -> Compactor:
        return Compactor(self.store, self.reader, settings, 65536, clock=lambda: now_s)

    @property
    def in_bucket(self) -> bool:
        return self.backend.url.startswith("couchbase")

    def told(self, since: str | None = None) -> dict[str, int]:
        return {change.id: change.seqno for change in ChangesReader(self.reader).changes(["A"], since).entries}


@pytest.fixture(params=["memory", *_URL_FIXTURES])
def world(request):
    url = "memory://" if request.param == "memory" else request.getfixturevalue(_URL_FIXTURES[request.param])
    backend = Backend(url, f"compact-{uuid.uuid4().hex}")
    owner = backend.owner()
    owner.create_or_check(META)
    owner.begin(0, 1, "n1")
    rows = [entry(0, seqno, f"doc-{seqno % 2}", f"{seqno}-x") for seqno in range(1, 9)]
    writer = backend.writer(block_bytes=100)
    for row in rows:
        writer.write([append("A", 1, row)])
    owner.advance(1, checkpoints({0: 8}))
    owner.note_moments(1, [0], 1000.0)
    owner.begin(0, 2, "n2")
    yield World(backend, owner, backend.reader(), backend.compaction())
    backend.close()


def _switch(world: World, **changes) -> Switch:
    (sizes,) = world.store.sizes(["A"])
    known = sizes.groups[GROUP].directory
    made = Switch("A", 0, [GroupChange(GROUP, known, removed=True)], None, 10, 20, b"", 60)
    return made._replace(**changes)


def test_sizes_are_those_of_all_blocks(world):
    sizes, absent = world.store.sizes(["A", "nobody's"])
    assert absent is None
    assert sizes.compacted == NEVER_COMPACTED
    (state,) = world.reader.channel_states(["A"])
    directory = state.groups[GROUP].directory
    refs = [BlockRef("A", GROUP, number) for number in range(directory.number + 1)]
    *full, active = map(len, world.reader.blocks(refs))
    assert sizes.groups[GROUP].active_bytes == (0 if world.in_bucket else active), "a bucket tells no sizes"
    assert sizes.n_bytes == state.counter - (active if world.in_bucket else 0)
    assert sum(full) + active == state.counter


def test_compaction_is_noted_under_the_present_epoch_alone(world):
    width = META.partition_width
    through = (5,) + (0,) * (width - 1)
    with pytest.raises(StaleEpoch):
        world.store.raise_compacted({0: through}, {0: 1})
    with pytest.raises(StaleEpoch):
        world.store.raise_compacted({0: (9, *through[1:])}, {0: 2})  # more than is stable: the store went back
    world.store.raise_compacted({0: through}, {0: 2})
    world.store.raise_compacted({0: (0,) * width}, {0: 2})
    assert world.reader.partition_records()[0].compacted_through == through
    record = world.owner.begin(0, 3, "n3", {0: Checkpoint(1, 3, 3, 3)})
    assert (record.stable[0], record.restarting[0]) == (0, 3)
    assert world.reader.partition_records()[0] == record


def test_a_switch_happens_once_and_only_if_all_output_is_there(world):
    clock = pack_frame(HEADER, 2, b"")  # in a bucket, it is the block's own
    first = pack_frame(HEADER, 1, b"")
    output = Output(OUTPUT, [len(first), len(clock)], Directory(1, 2, 3, len(clock)), clock)
    assert not world.store.switch(_switch(world, output=output)), "nothing was written"
    world.store.write_blocks("A", OUTPUT, 0, [first, clock])
    world.store.write_blocks("A", OUTPUT, 0, [b"late"])
    assert not world.store.switch(_switch(world, output=output, generation=1)), "of another generation"
    before = world.reader.channel_states(["A"])[0].counter
    switch = _switch(world, output=output, floor=b"\0" * 10)
    assert world.store.switch(switch)
    assert not world.store.switch(switch), "it has happened"
    (state,) = world.reader.channel_states(["A"])
    assert list(state.groups) == [OUTPUT]
    assert (state.compacted.generation, state.compacted.live, state.compacted.at) == (1, 10, 20)
    assert (state.groups[OUTPUT].clock, state.groups[OUTPUT].tail, state.floor) == (clock, b"", b"\0" * 10)
    assert state.counter == before, "it never goes back"
    assert world.reader.blocks([BlockRef("A", OUTPUT, 0), BlockRef("A", GROUP, 0)])[0] == first


def test_of_two_that_compact_a_channel_at_once_one_is_done_and_has_all_its_output(world):
    first, clock = pack_frame(HEADER, 1, b""), pack_frame(HEADER, 2, b"")
    groups = OUTPUT, f"{COMPACT_PREFIX}0022"
    for group, number, block in ((groups[0], 0, first), (groups[1], 0, first), (groups[0], 1, clock)):
        world.store.write_blocks("A", group, number, [block])
    world.store.write_blocks("A", groups[1], 1, [clock])
    world.store.write_blocks("A", groups[0], 2, [clock])
    done: list[str] = []
    for group, sizes in zip(groups, ([17, 17, 17], [17, 17]), strict=True):
        output = Output(group, sizes, Directory(len(sizes) - 1, 2, 3, len(clock)), clock)
        if world.store.switch(Switch("A", 0, [], output, 10, 20, b"", 60)):
            done.append(group)
            whole = world.reader.blocks([BlockRef("A", group, number) for number in range(len(sizes))])
            assert None not in whole
        else:
            world.store.discard("A", group, len(sizes))
    assert len(done) == 1
    assert list(world.reader.channel_states(["A"])[0].groups) == [GROUP, *done]


@pytest.mark.parametrize("grace_s", [60, 0])
def test_what_left_stays_for_its_grace(world, grace_s):
    assert world.store.switch(_switch(world, grace_s=grace_s))
    assert (world.reader.blocks([BlockRef("A", GROUP, 0)])[0] is None) == (grace_s == 0)


def test_output_that_nobody_named_is_removed(world):
    world.store.write_blocks("A", OUTPUT, 0, [b"abc", b"defg"])
    world.store.discard("A", OUTPUT, 2)
    assert list(world.reader.blocks([BlockRef("A", OUTPUT, 0), BlockRef("A", OUTPUT, 1)])) == [None, None]


def test_a_group_that_was_located_meanwhile_is_not_removed(world):
    switch = _switch(world)
    world.backend.writer().write([append("A", 2, entry(0, 9))])
    assert world.store.switch(switch)
    (state,) = world.reader.channel_states(["A"])
    directory = state.groups[GROUP].directory
    assert directory.first == switch.changes[0].known.number > 0
    assert directory.dropped == switch.changes[0].known.before
    assert [
        each.seqno for blocks in stored_blocks(world.reader, "A").values() for b in blocks for _, each in b.entries
    ][-1] == 9


def test_a_group_that_begins_again_takes_no_number_that_was_used(world):
    """A reader in the middle, or a late append, must never meet a new block under an old name."""
    before = stored_blocks(world.reader, "A")[GROUP]
    assert world.store.switch(_switch(world))
    world.backend.writer().write([append("A", 2, entry(0, 9))])
    ((name, state),) = world.reader.channel_states(["A"])[0].groups.items()
    assert name == GROUP
    assert state.directory.number == state.directory.first == len(before)
    assert fold_clock(state.frames) == {0: 9}
    refs = [BlockRef("A", GROUP, number) for number in range(len(before))]
    assert None not in world.reader.blocks(refs), "they are in their grace"


def test_room_behind_blocks_is_given_back_and_changes_nothing(world):
    writer = world.backend.writer(block_bytes=100)
    known = world.store.sizes(["A", "absent"])
    world.store.give_back({"A": known[0]})
    assert world.store.sizes(["A", "absent"]) == known
    told = world.told()
    writer.write([append("A", 2, entry(0, 9, "doc-9"))])
    world.store.give_back({"A": known[0]})
    world.owner.advance(2, checkpoints({0: 9}))
    assert world.told() == told | {"doc-9": 9}


def test_a_writer_whose_block_is_compacted_away_locates_it_anew(world):
    """It was paused: whatever it writes is dead, or there already. It must not end as if the store had lost data."""
    zombie = world.backend.writer()
    assert zombie.write([append("A", 1, entry(0, 8, "doc-0", "8-x"))]) == set()
    switch = _switch(world, grace_s=0)
    assert world.store.switch(switch)
    world.backend.writer().write([append("A", 2, entry(0, 9))])
    assert zombie.write([append("A", 1, entry(0, 8, "doc-0", "8-x"))]) == {1}, "refused: a newer epoch is there"


def test_a_block_that_was_lost_is_still_an_error(world):
    writer = world.backend.writer()
    writer.write([append("B", 2, entry(0, 9))])
    if world.in_bucket:
        world.backend.link().expire([CouchbaseKeys(world.backend.index_name).block("B", GROUP, 0)], 0)
    else:
        world.store.discard("B", GROUP, 1)
    with pytest.raises(BlockGone):
        writer.write([append("B", 2, entry(0, 10))])


@pytest.mark.parametrize("world", [*_URL_FIXTURES], indirect=True)
def test_a_block_that_was_lost_of_a_channel_that_was_compacted_is_an_error(world):
    """The directory names it, so no compaction took it: who asks for it again and again would ask for ever."""
    assert world.store.switch(_switch(world))
    writer = world.backend.writer()
    writer.write([append("A", 2, entry(0, 9))])
    number = world.reader.channel_states(["A"])[0].groups[GROUP].directory.number
    if world.in_bucket:
        world.backend.link().expire([CouchbaseKeys(world.backend.index_name).block("A", GROUP, number)], 0)
    else:
        world.store.discard("A", GROUP, number + 1)
    with pytest.raises(IndexCorrupt):
        writer.write([append("A", 2, entry(0, 10))])


def test_blocks_are_full_at_the_size_that_compaction_left(world):
    """Of a channel of few documents that change often, little garbage is in the active blocks."""
    result = world.compactor().compact("A")
    assert result.outcome == "compacted"
    writer = world.backend.writer()
    for seqno in range(9, 409):
        writer.write([append("A", 2, entry(0, seqno, "doc", "1-x"))])
    sizes = [
        len(block)
        for block in world.reader.blocks(
            [
                BlockRef("A", GROUP, number)
                for number in range(*_numbers(world.reader.channel_states(["A"])[0].groups[GROUP].directory))
            ]
        )
    ]
    assert len(sizes) == 3
    assert all(4096 <= size < 4096 + 100 for size in sizes)


def _numbers(directory: Directory) -> tuple[int, int]:
    return directory.first, directory.number


def test_compaction_leaves_the_newest_of_each_document_in_one_group(world):
    before = world.told()
    dry = world.compactor().compact("A", dry_run=True)
    assert list(stored_blocks(world.reader, "A")) == [GROUP], "nothing happened"
    assert world.reader.partition_records()[0].compacted_through == ()
    result = world.compactor().compact("A")
    assert result == dry
    assert (result.counts.read, result.counts.superseded) == (8, 6)
    ((group, blocks),) = stored_blocks(world.reader, "A").items()
    assert group.startswith(COMPACT_PREFIX)
    assert [(epoch, each.seqno) for block in blocks for epoch, each in block.entries] == [(1, 7), (1, 8)]
    if not world.in_bucket:
        assert (result.bytes_after, result.blocks_after) == (world.store.sizes(["A"])[0].n_bytes, 1)
    assert world.told() == before == {"doc-1": 7, "doc-0": 8}


def test_nothing_leaves_before_its_time(world):
    result = world.compactor(now_s=1000.5).compact("A")
    assert (result.counts.superseded, result.young_superseded) == (0, 6)
    assert world.told() == {"doc-1": 7, "doc-0": 8}


def test_a_deletion_whose_tombstone_is_purged_survives_a_rollback_below_what_was_compacted(world):
    """The stream begins again at 0 and does not bring it; a reader who holds the document must still be told."""
    store_reader, writer = world.reader, world.backend.writer()
    since = ChangesReader(store_reader).changes(["A"]).since
    writer.write([append("A", 2, entry(0, 9, "doc-1", "9-x", DELETED), entry(0, 20, "doc-0", "20-x"))])
    world.owner.advance(2, checkpoints({0: 20}))
    world.owner.note_moments(2, [0], 2000.0)
    world.compactor().compact("A")
    record = world.owner.begin(0, 3, "n3", {0: Checkpoint(2, 10, 10, 10)})
    assert record.stable[0] == 0, "doc-0 had left at seqno 8, and is the newest again"
    anew = world.backend.writer()
    anew.write([append("A", 3, entry(0, 8, "doc-0", "8-x"))])
    world.owner.advance(3, checkpoints({0: 4}, vbuuid=2))
    world.owner.begin(0, 4, "n4")
    world.owner.advance(4, checkpoints({0: 12}, vbuuid=2))
    assert world.told() == {"doc-0": 8, "doc-1": 9}
    (told,) = [each for each in ChangesReader(store_reader).changes(["A"], since).entries if each.id == "doc-1"]
    assert told.deleted


def test_removals_leave_for_their_age_and_a_floor_stays(world):
    settings = CompactionSettings(min_lag_s=1.0, removal_retention_s=100.0, grace_s=0.0)
    since = ChangesReader(world.reader).changes(["A"]).since
    world.backend.writer().write([append("A", 2, entry(0, 9, "doc-1", "9-x", DELETED))])
    world.owner.advance(2, checkpoints({0: 9}))
    world.owner.note_moments(2, [0], 2000.0)
    world.owner.begin(0, 3, "n3")
    assert world.compactor(2050.0, settings).compact("A").counts.removals == 0
    result = world.compactor(3000.0, settings).compact("A")
    assert result.counts.removals == 1
    assert world.told() == {"doc-0": 8}
    with pytest.raises(RemovalsForgotten):
        world.told(since)


def test_what_was_too_young_to_leave_a_channel_leaves_though_nobody_writes_it_any_more(world):
    settings = CompactionSettings(min_lag_s=1.0, removal_retention_s=100.0, grace_s=0.0, max_lag_s=500.0)
    world.backend.writer().write([append("A", 2, entry(0, 9, "doc-1", "9-x", DELETED))])
    world.owner.advance(2, checkpoints({0: 9}))
    world.owner.note_moments(2, [0], 2000.0)
    world.owner.begin(0, 3, "n3")
    world.compactor(2050.0, settings).compact("A")
    assert world.compactor(2100.0, settings).find_due(["A"]) == []
    compactor = world.compactor(2600.0, settings)
    (due,) = compactor.find_due(["A"])
    assert compactor.compact("A", due.extent).counts.removals == 1
    assert world.compactor(9000.0, settings).find_due(["A"]) == [], "nothing is left that could leave"


def _forget_a_deletion(world: World) -> tuple[str, str]:
    """Have doc-1 deleted at seqno 9, two more come, and the deletion leave; tokens of before it and after it."""
    before = ChangesReader(world.reader).changes(["A"]).since
    writer = world.backend.writer()
    writer.write([append("A", 2, entry(0, 9, "doc-1", "9-x", DELETED))])
    world.owner.advance(2, checkpoints({0: 9}))
    after = ChangesReader(world.reader).changes(["A"]).since
    writer.write([append("A", 2, entry(0, 10, "doc-2"), entry(0, 11, "doc-3"), entry(0, 12, "doc-4"))])
    world.owner.advance(2, checkpoints({0: 12}))
    world.owner.note_moments(2, [0], 2000.0)
    world.owner.begin(0, 3, "n3")
    settings = CompactionSettings(min_lag_s=1.0, removal_retention_s=100.0, grace_s=0.0)
    assert world.compactor(3000.0, settings).compact("A").counts.removals == 1
    return before, after


def test_who_begins_receives_page_by_page_across_a_floor(world):
    _forget_a_deletion(world)
    since = None
    told: list[str] = []
    while len(told) < 4:
        page = ChangesReader(world.reader).changes(["A"], since, limit=1)
        told += [change.id for change in page.entries]
        since = page.since
    assert told == ["doc-0", "doc-2", "doc-3", "doc-4"]


def test_a_token_below_a_floor_is_refused_though_its_vbucket_is_streamed_from_0_again(world):
    """It is lowered to 0, where it would be taken for that of a reader that has nothing."""
    before, after = _forget_a_deletion(world)
    record = world.owner.begin(0, 4, "n4", {0: Checkpoint(2, 10, 10, 10)})
    assert (record.stable[0], record.restarting[0]) == (0, 10)
    with pytest.raises(RemovalsForgotten):
        world.told(before)
    lowered = ChangesReader(world.reader).changes(["A"], after).since
    assert ChangesReader(world.reader).changes(["A"]).entries == ()
    with pytest.raises(RemovalsForgotten):
        world.told(lowered)


def test_groups_are_merged_where_there_are_many(world):
    writer, epoch, seqno = world.backend.writer(), 2, 8
    for number in range(MAX_GROUPS + 1):
        epoch, seqno = epoch + 1, seqno + 1
        world.owner.begin(0, epoch, "n")
        writer.write([append("A", epoch, entry(0, seqno, "x" * 200), group=f"{number:016x}")])
        world.owner.advance(epoch, checkpoints({0: seqno}))
    world.owner.note_moments(epoch, [0], 2000.0)
    before = world.told()
    compactor = world.compactor(settings=CompactionSettings(min_lag_s=1.0, max_lag_s=1e9))
    (found,) = compactor.find_due(["A"])
    assert found.extent is Extent.MERGE
    assert compactor.compact("A", found.extent).outcome == "compacted"
    groups = world.reader.channel_states(["A"])[0].groups
    assert len(groups) == 2, "what was merged, and the present epoch's"
    assert world.told() == before
    assert compactor.find_due(["A"]) == []


def test_of_more_groups_than_one_compaction_takes_in_the_next_one_takes_others(world, monkeypatch):
    """A store changes all groups of a switch at once, and a channel that nobody compacted may have thousands."""
    for module in (compaction_channel, compaction_due):
        monkeypatch.setattr(module, "MOST_SWITCHED", 3)
    writer, n_groups = world.backend.writer(), 7
    for number in range(n_groups):
        epoch, seqno = number + 3, number + 9
        world.owner.begin(0, epoch, "n")
        writer.write([append("A", epoch, entry(0, seqno, f"doc-{seqno % 2}", "9-x"), group=f"{number:016x}")])
        world.owner.advance(epoch, checkpoints({0: seqno}))
    world.owner.note_moments(epoch, [0], 2000.0)
    world.owner.begin(0, epoch + 1, "n")
    before, found = world.told(), list[int]()
    while len(found) < 2 or found[-1] < found[-2]:
        world.compactor().compact("A")
        found.append(len(world.reader.channel_states(["A"])[0].groups))
        assert world.told() == before
    assert found[0] == 1 + n_groups - 3, "what was in the first three is superseded"
    assert found[-1] == 1


def _long_life(world: World, patch: pytest.MonkeyPatch) -> float:
    """Let partition 0 have 20 owners, each of whom leaves an entry that the next one's start takes back."""
    patch.setattr(epochs, "HISTORY_BYTES", 4 * 8 * (1 + META.partition_width))
    writer, now_s = world.backend.writer(), 2000.0
    for epoch in range(2, 22):
        seqno = 8 + epoch
        writer.write([append("A", epoch, entry(0, seqno), entry(0, 100 + epoch, f"dead-{epoch}"))])
        world.owner.advance(epoch, checkpoints({0: seqno}))
        world.owner.note_moments(epoch, [0], now_s)
        world.owner.begin(0, epoch + 1, "n")
        now_s += 3600.0
    return now_s


def _archived(world: World) -> list[int]:
    return [start.epoch for start in world.reader.archived_starts([0])[0]]


def test_starts_that_are_needed_no_more_are_pruned(world, monkeypatch):
    now_s = _long_life(world, monkeypatch)
    before, archived = world.told(), _archived(world)
    settings = CompactionSettings(min_lag_s=1.0, dead_retention_s=1.0, grace_s=0.0)
    assert world.compactor(now_s, settings).prune(world.reader.channels, 1) == 0, "none is old enough"
    world.owner.note_moments(22, [0], now_s)
    compactor = world.compactor(now_s + 8 * 86400.0, settings)
    assert compactor.prune(world.reader.channels, 100) == 0, "it is not worth it"
    assert compactor.prune(world.reader.channels, 1) == len(archived) - 1
    assert _archived(world) == archived[-1:], "a mark is left, and what a record counts"
    assert world.told() == before
    taken_back = [each.seqno for _, each in all_entries(world.reader, "A") if each.seqno > 100]
    assert taken_back == [121], "by the last start, under which no moment was noted"
    assert compactor.prune(world.reader.channels, 1) == 0


def test_a_position_of_a_pruned_epoch_stands_at_0(world, monkeypatch):
    since = ChangesReader(world.reader).changes(["A"]).since
    now_s = _long_life(world, monkeypatch)
    world.owner.note_moments(22, [0], now_s)
    assert "doc-0" not in world.told(since)
    world.compactor(now_s + 8 * 86400.0).prune(world.reader.channels, 1)
    assert world.told(since) == world.told()
    ((_, *moments),) = world.reader.timelines([0])
    whole = whole_records(world.reader)[0]
    assert whole.pruned > moments[0].epoch
    assert epochs.fall_back(whole, moments[:1])[0].seqno == 0


@pytest.mark.parametrize("rotates", [False, True])
def test_what_is_written_while_a_channel_is_cleared_for_pruning_holds_it_up(world, monkeypatch, rotates):
    """The active block that had dead entries has grown, or is full: it stays, with them."""
    now_s = _long_life(world, monkeypatch)
    world.owner.note_moments(22, [0], now_s)
    writer, store = world.backend.writer(block_bytes=1 if rotates else 65536), world.store
    writer.write([append("A", 22, entry(0, 200))])

    class Late:
        """Writes before the first switch."""

        switched = False

        def __getattr__(self, name):
            return getattr(store, name)

        def switch(self, switch):
            if not self.switched:
                self.switched = True
                writer.write([append("A", 22, entry(0, 201))])
            return store.switch(switch)

    compactor = World(world.backend, world.owner, world.reader, Late()).compactor(now_s + 8 * 86400.0)
    archived = _archived(world)
    assert compactor.prune(world.reader.channels, 1) == 0
    assert _archived(world) == archived
    if world.in_bucket and not rotates:
        return  # no block can be compared and its directory changed at once: it waits until the block is full
    assert compactor.prune(world.reader.channels, 1) == len(archived) - 1
    writer.write([append("A", 22, entry(0, 202))])
    world.owner.advance(22, checkpoints({0: 202}))
    told = world.told()
    assert all(told[f"doc-0-{seqno}"] == seqno for seqno in (*range(10, 30), 200, 201, 202))
    assert not [key for key in told if key.startswith("dead")]
