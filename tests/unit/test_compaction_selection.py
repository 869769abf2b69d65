"""Which entries of a channel stay: compared, in any history, with what readers were told before."""

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channelindex import blocks, epochs
from channelindex.blocks import HEADER, iter_entries, iter_frames, pack_entry, unpack_pairs
from channelindex.compaction.judge import Ages, Judge
from channelindex.compaction.packing import pack_group
from channelindex.compaction.selection import Selected, Selection
from channelindex.epochs import Bounds, PartitionRecord, new_record
from channelindex.errors import IndexCorrupt
from channelindex.model import DELETED, ORIGIN, REMOVED, Checkpoint, Entry

TOP = 12
SEQNOS = st.integers(0, TOP)


class Stored(NamedTuple):
    """An entry, its epoch, and whether the compaction may move it."""

    epoch: int
    entry: Entry
    is_input: bool = True


def _at(seqno: int) -> Checkpoint:
    return Checkpoint(1, seqno, seqno, seqno)


def _record(*steps: tuple[int, int, int]) -> PartitionRecord:
    """One vbucket after (epoch, the seqno it starts at or goes back to, the one up to which it advances), in turn."""
    record = new_record(0, 1)
    for epoch, start, stable in steps:
        record = epochs.begin(record, epoch, "n", {0: _at(start)})
        record = epochs.advance(record, epoch, {0: _at(max(stable, record.stable[0]))})
    return record


@st.composite
def _records(draw) -> PartitionRecord:
    numbers = sorted(draw(st.sets(st.integers(1, 9), min_size=1, max_size=4)))
    return _record(*[(number, draw(SEQNOS), draw(SEQNOS)) for number in numbers])


_ENTRIES = st.lists(
    st.builds(
        Stored,
        st.integers(1, 10),
        st.builds(
            lambda key, seqno, flags: Entry(0, seqno, b"doc-%d" % key, f"{seqno}-x", flags),
            st.integers(0, 2),
            st.integers(1, TOP),
            st.sampled_from([0, 0, 0, REMOVED, DELETED]),
        ),
        st.sampled_from([True, True, True, False]),
    ),
    max_size=25,
)


def _select(record: PartitionRecord, stored, settled: int = 0, removable: int = 0, dead_epoch: int = 0) -> Selected:
    selection = Selection(Judge([record], Ages([settled], [removable], [dead_epoch])), is_whole=True)
    for epoch, entry, is_input in stored:
        selection.add(epoch, pack_entry(entry), is_input=is_input)
    return selection.result()


def _after(stored, selected: Selected) -> list[Stored]:
    """What the channel has after the compaction."""
    outside = [each for each in stored if not each.is_input]
    kept = [Stored(epoch, next(iter_entries(raw))) for _, _, epoch, raw in selected.kept]
    return [*outside, *kept]


def _told(record: PartitionRecord, stored, since: int, upto: int) -> dict[bytes, set[Entry]]:
    """By document the newest entries in (since, upto] that a reader with *record* may see."""
    bounds, told = Bounds(record), dict[bytes, set[Entry]]()
    for epoch, entry, _ in stored:
        if epoch > record.epoch or not since < entry.seqno <= min(upto, bounds.bound(epoch, 0)):
            continue
        known = max((each.seqno for each in told.get(entry.key, ())), default=0)
        if entry.seqno >= known:
            told[entry.key] = {entry, *(told[entry.key] if entry.seqno == known else ())}
    return told


@given(record=_records(), stored=_ENTRIES, settled=SEQNOS, since=SEQNOS, upto=SEQNOS)
def test_readers_receive_the_same_by_every_view_that_is_not_older_than_the_settled_clock(
    record, stored, settled, since, upto
):
    settled = min(settled, record.stable[0])
    after = _after(stored, _select(record, stored, settled))
    upto = max(upto, settled)
    assert _told(record, after, since, upto) == _told(record, stored, since, upto)


@given(record=_records(), stored=_ENTRIES, settled=SEQNOS, back=SEQNOS, since=SEQNOS, upto=SEQNOS)
def test_a_rollback_that_does_not_begin_at_0_finds_all_that_it_needs(record, stored, settled, back, since, upto):
    settled = min(settled, record.stable[0])
    after = _after(stored, _select(record, stored, settled))
    compacted = epochs.compact(record, record.epoch, [settled])
    rolled_back = epochs.begin(compacted, 11, "n", {0: _at(back)})
    if rolled_back.checkpoints[0] == ORIGIN and back < settled:
        return  # it is streamed again
    upto = min(max(upto, settled), rolled_back.stable[0])
    assert _told(rolled_back, after, since, upto) == _told(rolled_back, stored, since, upto)


@given(record=_records(), stored=_ENTRIES, settled=SEQNOS, dead_epoch=st.integers(0, 9))
def test_what_died_lately_stays(record, stored, settled, dead_epoch):
    settled = min(settled, record.stable[0])
    selected = _select(record, stored, settled, dead_epoch=dead_epoch)
    kept = {(epoch, next(iter_entries(raw))) for _, _, epoch, raw in selected.kept}
    bounds = Bounds(record)
    then = Bounds(record._replace(history=tuple(s for s in record.history if s.epoch <= dead_epoch)))
    newest: dict[bytes, int] = {}
    for epoch, entry, _ in stored:
        if epoch <= record.epoch and entry.seqno <= min(bounds.bound(epoch, 0), settled):
            newest[entry.key] = max(newest.get(entry.key, 0), entry.seqno)
    for epoch, entry, is_input in stored:
        superseded = epoch <= record.epoch and entry.seqno < newest.get(entry.key, 0)
        long_dead = epoch <= record.epoch and entry.seqno > then.bound(epoch, 0)
        assert ((epoch, entry) in kept) == (is_input and not superseded and not long_dead) or not is_input


@given(record=_records(), stored=_ENTRIES, settled=SEQNOS, removable=SEQNOS)
def test_only_old_removals_of_which_nothing_is_left_are_forgotten(record, stored, settled, removable):
    settled = min(settled, record.stable[0])
    removable = min(removable, settled)
    selected = _select(record, stored, settled, removable)
    before = _told(record, stored, 0, record.stable[0])
    after = _told(record, _after(stored, selected), 0, record.stable[0])
    for key, entries in before.items():
        if key not in after:
            assert all(entry.flags & (REMOVED | DELETED) and entry.seqno <= removable for entry in entries)
            assert selected.floor[0] >= max(entry.seqno for entry in entries)
        else:
            assert after[key] == entries
    assert after.keys() <= before.keys(), "nothing comes back"


@given(record=_records(), stored=_ENTRIES, block_bytes=st.integers(1, 300), ends_with_header=st.booleans())
def test_a_packed_group_has_what_stays_and_headers_that_cover_it(record, stored, block_bytes, ends_with_header):
    selected = _select(record, stored)
    if not selected.kept:
        return
    packed = pack_group(selected.kept, 10, block_bytes, ends_with_header=ends_with_header)
    found: list[tuple[int, int, int, bytes]] = []
    clock: dict[int, int] = {}
    for block in packed.blocks:
        (kind, _, header), *frames = iter_frames(block)
        assert kind == HEADER
        assert unpack_pairs(header) == clock
        entries = [(e.seqno, e.vb, epoch, pack_entry(e)) for _, epoch, body in frames for e in iter_entries(body)]
        found += entries
        for seqno, vb, _, _ in entries:
            clock[vb] = max(clock.get(vb, 0), seqno)
    assert sorted(found) == selected.kept
    assert blocks.fold_clock(packed.clock) == clock
    assert packed.directory.before + packed.directory.upto == sum(map(len, packed.blocks))
    assert packed.directory.number == len(packed.blocks) - 1


@pytest.mark.parametrize(
    ("since_begin", "kept"),
    [
        pytest.param(0, (100, 110), id="settled long enough: the old one leaves"),
        pytest.param(1, (20, 100, 110), id="not yet settled: it stays"),
    ],
)
def test_a_superseded_entry_leaves_when_the_newer_one_has_settled(since_begin, kept):
    record = _record((1, 0, 105))
    stored = [Stored(1, Entry(0, seqno, b"doc", "1-x", 0)) for seqno in (20, 100, 110)]
    selected = _select(record, stored, settled=100 - since_begin)
    assert tuple(entry[0] for entry in selected.kept) == kept
    assert selected.counts.superseded == 3 - len(kept)
    assert selected.young_superseded == len(kept) - 1, "110 is live, and newer than all"


def test_entries_of_an_epoch_after_the_view_stay_and_supersede_nothing():
    record = _record((1, 0, 9))
    stored = [Stored(1, Entry(0, 3, b"doc", "1-x", 0)), Stored(2, Entry(0, 5, b"doc", "2-x", 0))]
    assert [entry[:3] for entry in _select(record, stored, settled=9).kept] == [(3, 0, 1), (5, 0, 2)]


def test_what_is_brought_again_after_the_view_is_not_superseded_by_what_the_view_takes_for_live():
    """A rollback to 3 that the view does not know: 5 is dead, and 3 is the newest, brought again."""
    record = _record((1, 0, 9))
    old = [Stored(1, Entry(0, seqno, b"doc", "1-x", DELETED)) for seqno in (3, 5)]
    again = Stored(2, Entry(0, 3, b"doc", "1-x", DELETED))
    for stored in ([*old, again, again], [again, *old]):
        selected = _select(record, stored, settled=9, removable=9)
        assert [entry[:3] for entry in selected.kept] == [(3, 0, 2), (5, 0, 1)]
        assert not selected.floor


def test_one_of_equal_entries_stays():
    record = _record((1, 0, 9))
    selected = _select(record, [Stored(1, Entry(0, 3, b"doc", "1-x", 0))] * 3)
    assert len(selected.kept) == 1
    assert selected.counts.repeated == 2


@pytest.mark.parametrize(
    "body", [b"short", pack_entry(Entry(0, 1, b"k", "1-x", 0))[:-1], pack_entry(Entry(7, 1, b"k", "1-x", 0))]
)
def test_damage_is_an_error(body):
    selection = Selection(Judge([_record((1, 0, 9))], Ages([9], [0], [0])), is_whole=True)
    with pytest.raises(IndexCorrupt):
        selection.add(1, body, is_input=True)
