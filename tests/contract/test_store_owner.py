"""The owner's half of every index store: meta, epochs, the stable clock, quarantine."""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from channelindex import epochs
from channelindex.epochs import NO_BOUND, Bounds, EpochStart, PartitionRecord, new_record, whole_record
from channelindex.errors import IndexMismatch, IndexMissing, StaleEpoch
from channelindex.model import ORIGIN, Checkpoint, IndexMeta
from channelindex.reading.changes_reader import ChangesReader
from channelindex.reading.snapshot import IndexSnapshot
from channelindex.stores.base import OwnerStore, Quarantined
from channelindex.stores.records import QUARANTINE_DOCUMENTS, pack_checkpoints, pack_history, view_of
from tests.support.stores import META, Backend, append, checkpoints, entry, whole_records

SEQNOS = [2**24 - 1, 2**24, 2**24 + 1, 2**32, 2**32 + 1, 2**48, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1]


@pytest.fixture
def owner(backend: Backend):
    opened = backend.owner()
    opened.create_or_check(META)
    return opened


def _stable(backend: Backend, vb: int) -> int:
    record = backend.reader().partition_records()[vb // META.partition_width]
    return record.stable[vb - record.first_vb]


def test_created_index_has_a_record_for_every_partition(backend, owner):
    assert backend.reader().meta() == META
    assert backend.reader().partition_records() == [new_record(first_vb, 4) for first_vb in (0, 4, 8, 12)]


def test_second_creation_finds_the_first_ones_meta(backend, owner):
    assert backend.owner().create_or_check(_with(index_uuid="another")) == META


def test_index_that_several_nodes_create_at_once_is_one_index(backend):
    """Without a lock: whoever comes first has created all of it, and nobody loses what an earlier one began."""
    at_once = threading.Barrier(4)

    def create(number: int) -> tuple[IndexMeta, PartitionRecord]:
        owner = backend.owner()
        at_once.wait()
        meta = owner.create_or_check(_with(index_uuid=f"node-{number}"))
        return meta, owner.begin(number, owner.next_epoch(), f"node-{number}")

    with ThreadPoolExecutor(4) as nodes:
        created = list(nodes.map(create, range(4)))
    assert {meta.index_uuid for meta, _ in created} == {backend.reader().meta().index_uuid}
    assert backend.reader().partition_records() == [record for _, record in created]
    assert len({record.epoch for _, record in created}) == 4


def _with(**changes):
    return msgspec.structs.replace(META, **changes)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"n_partitions": 8}, "index.partitions"),
        ({"n_vbuckets": 32}, "vbuckets"),
        ({"source_uuid": "another"}, "source bucket"),
    ],
)
def test_index_of_another_shape_or_bucket_is_refused(backend, owner, change, named):
    epoch = owner.next_epoch()
    owner.begin(0, epoch, "n1")
    with pytest.raises(IndexMismatch, match=named) as raised:
        backend.owner().create_or_check(_with(**change))
    assert "index.name" in str(raised.value)
    assert backend.reader().meta() == META
    assert backend.reader().partition_records()[0].epoch == epoch


@pytest.mark.parametrize(("version", "way_out"), [(99, "upgrade"), (0, "index.name")])
def test_an_index_of_another_format_is_refused_by_whoever_meets_it(backend, version, way_out):
    with pytest.raises(IndexMismatch):
        backend.owner().create_or_check(_with(format=version))
    for refused in (
        lambda: backend.reader().meta(),
        lambda: backend.reader().partition_records(),
        lambda: backend.owner().create_or_check(META),
        lambda: backend.owner().begin(0, 1, "n1"),
        lambda: backend.owner().advance(1, checkpoints({0: 1})),
    ):
        with pytest.raises(IndexMismatch, match=f"format version {version}.*{way_out}"):
            refused()


def test_index_that_was_not_created_is_missing(backend):
    with pytest.raises(IndexMissing, match=r"index\.name|memory"):
        backend.reader().meta()
    with pytest.raises(IndexMissing):
        backend.reader().partition_records()
    with pytest.raises(IndexMissing):
        backend.owner().begin(0, 1, "n1")
    with pytest.raises(IndexMissing):
        backend.owner().advance(1, checkpoints({0: 1}))


def test_epochs_rise_over_all_owners(backend, owner):
    other = backend.owner()
    first, second, third = owner.next_epoch(), other.next_epoch(), owner.next_epoch()
    assert first < second < third


def test_an_index_that_is_made_anew_hands_out_no_epoch_again(backend, owner):
    if backend.memory:
        return  # it is lost with the only process that knows its epochs
    before = [owner.next_epoch() for _ in range(3)]
    time.sleep(0.01)  # it takes longer to lose an index
    anew = Backend(backend.url, "test:anew")
    anew.owner().create_or_check(META)
    assert anew.owner().next_epoch() > max(before)
    anew.close()


def test_begin_starts_at_the_stable_clock(backend, owner):
    first = owner.begin(1, 1, "n1")
    assert first.checkpoints == (ORIGIN,) * 4
    owner.advance(1, checkpoints({5: 70, 6: 3}))
    second = owner.begin(1, 2, "n2")
    assert second.stable == (0, 70, 3, 0)
    assert second.history[-1] == EpochStart(2, (0, 70, 3, 0))
    assert (second.epoch, second.owner) == (2, "n2")
    assert backend.reader().partition_records()[1] == second


def test_begin_with_an_epoch_that_is_not_higher_is_refused(backend, owner):
    owner.begin(0, 5, "n1")
    before = backend.reader().partition_records()
    for epoch, name in ((4, "n2"), (5, "n2"), (4, "n1")):
        with pytest.raises(StaleEpoch) as raised:
            owner.begin(0, epoch, name)
        assert (raised.value.partition, raised.value.current) == (0, 5)
    assert backend.reader().partition_records() == before


def test_begin_repeated_after_a_lost_reply_finds_its_own_epoch(backend, owner):
    record = owner.begin(0, 5, "n1")
    assert owner.begin(0, 5, "n1") == record
    owner.advance(5, checkpoints({0: 9}))
    assert owner.begin(0, 5, "n1").stable[0] == 9


def test_rollback_lowers_the_checkpoint_and_starts_the_epoch_there(backend, owner):
    owner.begin(0, 1, "n1")
    owner.advance(1, checkpoints({0: 100, 1: 50}))
    back = Checkpoint(vbuuid=77, seqno=40, snap_start=40, snap_end=40, purge_seqno=0)
    record = owner.begin(0, 2, "n1", {0: back, 1: back._replace(seqno=60)}, only_if=1)
    assert record.checkpoints[0] == back
    assert record.stable == (40, 50, 0, 0)
    assert record.history[-1] == EpochStart(2, (40, 50, 0, 0))
    assert owner.begin(0, 2, "n1", {0: back}, only_if=1) == record


def test_rollback_by_one_who_is_no_longer_the_owner_is_refused(owner):
    owner.begin(0, 1, "n1")
    owner.begin(0, 2, "n2")
    with pytest.raises(StaleEpoch):
        owner.begin(0, 3, "n1", {0: ORIGIN}, only_if=1)


def test_rollback_within_an_epoch_is_refused(owner):
    """To go back takes a new epoch: the frames of the old history would stay live."""
    owner.begin(0, 1, "n1")
    owner.advance(1, checkpoints({0: 100}))
    owner.begin(0, 2, "n1")
    with pytest.raises(StaleEpoch):
        owner.begin(0, 2, "n1", {0: ORIGIN})


@pytest.mark.parametrize("seqno", SEQNOS)
def test_stable_clock_moves_forward_only_in_all_64_bits(backend, owner, seqno):
    owner.begin(0, 1, "n1")
    owner.advance(1, checkpoints({1: seqno}))
    owner.advance(1, checkpoints({1: seqno - 1}))
    assert _stable(backend, 1) == seqno
    if seqno < 2**64 - 1:
        owner.advance(1, checkpoints({1: seqno + 1}))
        assert _stable(backend, 1) == seqno + 1


def test_each_advance_moves_what_is_not_lower_wherever_it_lies_in_its_partition(backend, owner):
    """Any subset of the vbuckets, in any order; records and stable view say the same."""
    owner.begin_all({partition: {} for partition in range(4)}, 1, "n1")
    reader, chance, expected = backend.reader(), random.Random(7), [0] * META.n_vbuckets
    for _ in range(40):
        moved = {vb: chance.randrange(60) for vb in chance.sample(range(16), chance.randrange(1, 16))}
        owner.advance(1, checkpoints(moved))
        expected = [max(seqno, moved.get(vb, 0)) for vb, seqno in enumerate(expected)]
        assert reader.stable_view().stable == expected
        assert [checkpoint.snap_end for record in reader.partition_records() for checkpoint in record.checkpoints] == (
            expected
        )


def test_checkpoint_at_the_same_seqno_is_replaced(backend, owner):
    """The seqno of a snapshot's end comes again with the next snapshot's range and vbuuid."""
    owner.begin(0, 1, "n1")
    owner.advance(1, checkpoints({1: 10}))
    newer = Checkpoint(vbuuid=2, seqno=10, snap_start=10, snap_end=20, purge_seqno=2**64 - 1)
    owner.advance(1, {0: {1: newer}})
    assert backend.reader().partition_records()[0].checkpoints == (ORIGIN, newer, ORIGIN, ORIGIN)


def test_advance_moves_every_partition_of_the_epoch_and_names_the_first_that_refused(backend, owner):
    for partition, epoch in ((0, 1), (1, 2), (2, 1), (3, 3)):
        owner.begin(partition, epoch, "n1")
    with pytest.raises(StaleEpoch) as raised:
        owner.advance(1, checkpoints({0: 5, 4: 5, 8: 5, 12: 5}))
    assert (raised.value.partition, raised.value.ours, raised.value.current) == (1, 1, 2)
    assert [_stable(backend, vb) for vb in (0, 4, 8, 12)] == [5, 0, 5, 0]


def test_an_owner_without_news_learns_that_it_is_none_and_wakes_nobody(backend, owner):
    reader = backend.reader()
    owner.begin(0, 1, "n1")
    owner.begin(1, 1, "n1")
    owner.advance(1, {0: {}, 1: {}})
    owner.advance(1, {})
    assert reader.stable_counter() == 0
    owner.advance(1, {0: {}, **checkpoints({4: 7})})
    assert reader.stable_counter() > 0
    before = reader.partition_records()
    owner.begin(1, 2, "n2")
    with pytest.raises(StaleEpoch):
        owner.advance(1, {0: {}, 1: {}})
    assert reader.partition_records()[0] == before[0]


def test_an_advance_that_is_refused_wakes_nobody(backend, owner):
    """A worker that has lost its partitions and does not know it yet must not wake every reader time and again."""
    reader = backend.reader()
    owner.begin(0, 1, "n1")
    owner.begin(0, 2, "n2")
    for moved in (checkpoints({0: 7}), {**checkpoints({0: 7}), 1: {}}):
        with pytest.raises(StaleEpoch):
            owner.advance(1, moved)
    assert reader.stable_counter() == 0
    owner.begin(1, 1, "n1")
    with pytest.raises(StaleEpoch):
        owner.advance(1, checkpoints({0: 7, 4: 7}))
    assert reader.stable_counter() > 0


def test_concurrent_begins_have_one_owner_each_and_lose_no_epoch(backend, owner):
    handed_out: list[int] = []

    def begin_some(name: str) -> None:
        mine = backend.owner()
        for _ in range(20):
            epoch = mine.next_epoch()
            handed_out.append(epoch)
            try:
                mine.begin(2, epoch, name)
            except StaleEpoch:
                continue

    threads = [threading.Thread(target=begin_some, args=(f"n{number}",)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    record = backend.reader().partition_records()[2]
    assert len(set(handed_out)) == 60
    assert record.epoch == max(handed_out)
    assert record.history == (EpochStart(record.epoch, (0, 0, 0, 0)),)


def test_all_begin_in_one_epoch_each_at_its_own_clock(backend, owner):
    owner.begin_all({0: {}, 1: {}, 3: {}}, 1, "n1")
    owner.advance(1, checkpoints({0: 5, 4: 7, 12: 9}))
    back = Checkpoint(vbuuid=77, seqno=3, snap_start=3, snap_end=3)
    begun = owner.begin_all({3: {}, 1: {4: back}}, 2, "n2", only_if=1)
    records = backend.reader().partition_records()
    assert begun == [records[3], records[1]]
    assert [(record.epoch, record.owner) for record in records] == [(1, "n1"), (2, "n2"), (0, ""), (2, "n2")]
    assert records[1].history[-1] == EpochStart(2, (3, 0, 0, 0))
    assert owner.begin_all({3: {}, 1: {4: back}}, 2, "n2", only_if=1) == begun, "repeated after a lost reply"
    assert owner.begin_all({}, 3, "n2") == []


def test_all_of_which_one_is_refused_can_be_begun_again_without_it(backend, owner):
    owner.begin_all({0: {}, 1: {}, 2: {}}, 1, "n1")
    owner.begin(1, 5, "n2")
    with pytest.raises(StaleEpoch) as raised:
        owner.begin_all({0: {}, 1: {}, 2: {}}, 4, "n1", only_if=1)
    assert (raised.value.partition, raised.value.current) == (1, 5)
    owner.begin_all({0: {}, 2: {}}, 4, "n1", only_if=1)
    assert [record.epoch for record in backend.reader().partition_records()] == [4, 5, 4, 0]


def test_all_that_begin_archive_their_old_starts(backend, owner, monkeypatch):
    monkeypatch.setattr(epochs, "HISTORY_BYTES", 0)
    for epoch in (1, 2, 3):
        owner.begin_all({0: {}, 1: {}}, epoch, "n1")
        owner.advance(epoch, checkpoints({0: 10 * epoch, 4: 10 * epoch}))
    archives = backend.reader().archived_starts([0, 1])
    assert [{start.epoch for start in archive} for archive in archives] == [{1, 2}, {1, 2}]


def test_stable_view_says_what_the_records_say_after_every_change(backend, owner):
    reader = backend.reader()

    def check():
        assert reader.stable_view() == view_of(META, reader.partition_records())
        assert reader.partition_records([2, 0]) == [reader.partition_records()[partition] for partition in (2, 0)]

    check()
    owner.begin_all({0: {}, 3: {}}, 1, "n1")
    check()
    owner.advance(1, checkpoints({0: 1 << 33, 3: (1 << 53) + 1, 14: 7}))
    check()
    owner.advance(1, checkpoints({0: 5, 1: 9}))  # the first is lower than the present
    check()
    owner.begin(0, 2, "n2", rollback={3: Checkpoint(1, 4, 4, 4)})
    check()
    owner.restore(META, [3])
    check()
    assert reader.stable_view().epochs == (2, 0, 0, 0)
    assert reader.stable_view().stable[:4] == [1 << 33, 9, 0, 4]


def test_how_far_a_start_reaches_is_kept_in_the_record_and_in_the_archive(backend, owner, monkeypatch):
    monkeypatch.setattr(epochs, "HISTORY_BYTES", 0)
    reader = backend.reader()
    _take_over(owner, 1, 10)
    (present, *_) = reader.partition_records()[0].checkpoints
    returned = epochs.returned(present, present._replace(seqno=7), 3)
    assert owner.begin(0, 2, "n2", {0: returned}).history[-1] == EpochStart(2, (7, 0, 0, 0), (10, 0, 0, 0))
    bounds = Bounds(whole_records(reader)[0])
    assert [(bounds.of(epoch)[0], bounds.reach_of(epoch)[0]) for epoch in (0, 1, 2)] == [
        (0, 0),
        (7, 10),
        (NO_BOUND,) * 2,
    ]
    owner.advance(2, checkpoints({0: 20}))
    _take_over(owner, 3, 30)
    assert reader.partition_records()[0].archived == 2
    bounds = Bounds(whole_records(reader)[0])
    assert [(bounds.of(epoch)[0], bounds.reach_of(epoch)[0]) for epoch in (1, 2)] == [(7, 10), (20, 20)]


def test_ten_thousand_takeovers_leave_a_small_record_and_every_bound(backend, owner):
    """Each with progress in every vbucket, so that no start implies another. Over a wire, a tenth of them has to do."""
    reader, n_takeovers = backend.reader(), 10_000 if backend.memory else 1000
    for number in range(1, n_takeovers + 1):
        owner.begin(1, number, "n1")
        owner.advance(number, checkpoints(dict.fromkeys(META.vbuckets_of(1), 10 * number)))
        if number % 100 == 1:
            assert _record_bytes(reader.partition_records()[1]) < 10_000
    record = reader.partition_records()[1]
    assert _record_bytes(record) < 10_000
    bounds = Bounds(whole_records(reader)[1])
    for epoch in range(n_takeovers):
        assert bounds.bound(epoch, 4) == 10 * epoch
    assert bounds.bound(n_takeovers, 4) == NO_BOUND


def _record_bytes(record: PartitionRecord) -> int:
    return len(pack_checkpoints(record.checkpoints)) + len(pack_history(record.history))


def test_a_reader_of_an_old_record_finds_in_the_archive_what_has_left_it_since(backend, owner, monkeypatch):
    monkeypatch.setattr(epochs, "HISTORY_BYTES", 0)
    reader = backend.reader()
    assert reader.archived_starts([0, 1]) == [(), ()]
    _take_over(owner, 1, 10)
    _take_over(owner, 2, 20)
    then = reader.partition_records()[0]
    _take_over(owner, 3, 30)
    (archive,) = reader.archived_starts([0])
    assert {start.epoch for start in archive} == {1, 2}
    bounds = Bounds(whole_record(then, archive))
    assert [bounds.bound(epoch, 0) for epoch in (0, 1, 2)] == [0, 10, NO_BOUND]


def _take_over(owner: OwnerStore, epoch: int, seqno: int) -> None:
    owner.begin(0, epoch, f"n{epoch}")
    owner.advance(epoch, checkpoints({0: seqno}))


def _stable_before(backend: Backend, time_s: float) -> list[int]:
    reader = backend.reader()
    snapshot = IndexSnapshot.take(reader)
    return snapshot.stable_before(reader.timelines(range(META.n_partitions)), time_s)


def test_a_timeline_says_what_was_stable_at_a_time(backend, owner):
    assert backend.reader().timelines([0, 3]) == [[], []]
    owner.begin_all({0: {}, 3: {}}, 1, "n1")
    owner.note_moments(1, [0, 3], 1000.0)
    owner.advance(1, checkpoints({1: 2**64 - 1, 15: 7}))
    owner.note_moments(1, [0, 3], 2000.0)
    owner.advance(1, checkpoints({15: 9}))
    owner.note_moments(1, [0, 3], 3000.5)
    assert [_stable_before(backend, time_s)[15] for time_s in (999, 1000, 1999, 2000, 3000, 3001)] == [0, 0, 0, 7, 7, 9]
    assert _stable_before(backend, 2500) == [0, 2**64 - 1, *[0] * 13, 7]
    resting, busy = backend.reader().timelines([0, 3])
    assert [moment.time_ms for moment in resting] == [1_000_000, 2_000_000], "what did not move is not noted again"
    assert [moment[:2] for moment in busy] == [(1_000_000, 1), (2_000_000, 1), (3_000_500, 1)]
    assert busy[-1].checkpoints == backend.reader().partition_records()[3].checkpoints


def test_a_moment_is_lowered_by_what_was_taken_back_since(backend, owner, monkeypatch):
    monkeypatch.setattr(epochs, "HISTORY_BYTES", 0)
    owner.begin(0, 1, "n1")
    owner.advance(1, checkpoints({0: 10, 1: 10}))
    owner.note_moments(1, [0], 1000.0)
    owner.begin(0, 2, "n1", {0: Checkpoint(7, 4, 4, 4)})
    owner.advance(2, checkpoints({0: 6}))
    owner.note_moments(2, [0], 2000.0)
    owner.begin(0, 3, "n1")
    assert [_stable_before(backend, time_s)[:2] for time_s in (1000, 2000)] == [[4, 10], [6, 10]]


def test_one_who_lost_a_partition_notes_nothing_of_it(backend, owner):
    owner.begin_all({0: {}, 1: {}}, 1, "n1")
    owner.begin(0, 2, "n2")
    owner.note_moments(1, [0, 1], 1000.0)
    assert [len(moments) for moments in backend.reader().timelines([0, 1])] == [0, 1]


def test_a_timeline_stays_short_whatever_the_clocks_of_nodes_say(backend, owner):
    """Each owner's clock is off by some time; none makes a timeline longer, or go back."""
    offsets = [0, 3600, -3600]
    for number in range(90):
        owner.begin(0, number + 1, "n1")
        owner.advance(number + 1, checkpoints({0: number + 1}))
        owner.note_moments(number + 1, [0], 1_000_000.0 + number + offsets[number % 3])
    (moments,) = backend.reader().timelines([0])
    assert [moment.time_ms for moment in moments] == sorted({moment.time_ms for moment in moments})
    assert len(moments) < 30
    assert moments[-1].checkpoints[0].seqno == 90


def test_a_partition_that_is_written_anew_has_no_timeline(backend, owner):
    owner.begin(0, 1, "n1")
    owner.advance(1, checkpoints({0: 10}))
    owner.note_moments(1, [0], 1000.0)
    owner.restore(META, [0])
    assert backend.reader().timelines([0]) == [[]]


def test_quarantine_remembers_the_newest_and_counts_all(backend, owner):
    def document(number: int) -> Quarantined:
        return Quarantined(3, 2**63 + number, b"\xff key", "bad JSON at byte 7", 1.5 + number)

    total = QUARANTINE_DOCUMENTS + 50
    for start in range(0, total, 350):
        owner.quarantine([document(number) for number in range(start, min(total, start + 350))])
    owner.quarantine([])
    count, newest = backend.reader().quarantined(3)
    assert count == total
    assert list(newest) == [document(total - 1), document(total - 2), document(total - 3)]
    assert len(backend.reader().quarantined(10**6)[1]) == QUARANTINE_DOCUMENTS


def test_what_is_taken_out_of_the_quarantine_is_gone_but_counted(backend, owner):
    again = [Quarantined(1, 7, b"a", "why", at) for at in (1.0, 2.0)]
    other = Quarantined(2, 7, b"\xff", "why", 3.25)
    owner.quarantine([*again, other])
    owner.forget_quarantined([again[0], other, Quarantined(3, 1, b"never there", "why", 4.0)])
    owner.forget_quarantined([])
    count, newest = backend.reader().quarantined()
    assert (count, list(newest)) == (3, [again[1]])
    owner.quarantine([other])
    assert list(backend.reader().quarantined()[1]) == [other, again[1]]


def test_indexes_of_other_names_are_other_indexes(backend, owner):
    other = Backend(backend.url, "test:2")
    with pytest.raises(IndexMissing):
        other.reader().meta()
    other.writer().write([])
    other.owner().create_or_check(META)
    assert other.owner().next_epoch() > 0
    other.close()


def test_closing_twice_is_harmless(backend):
    for half in (backend.owner(), backend.reader(), backend.writer()):
        half.close()
        half.close()


# --- what is lost is written anew


def test_restoring_a_whole_index_changes_nothing(backend, owner):
    owner.begin(1, owner.next_epoch(), "n1")
    before = list(backend.reader().partition_records())
    assert owner.restore(META) == (META, False, ())
    assert list(backend.reader().partition_records()) == before


def test_an_index_of_which_nothing_is_there_is_made_by_a_restore_only_where_that_is_asked_for(backend):
    owner = backend.owner()
    with pytest.raises(IndexMissing, match=r"index\.name|memory"):
        owner.restore(META)
    with pytest.raises(IndexMissing):
        backend.reader().meta()
    assert owner.restore(META, from_nothing=True).wrote_meta
    assert backend.reader().meta() == META


def test_a_partition_that_is_restored_starts_at_the_beginning_and_all_before_is_dead(backend, owner):
    writer = backend.writer()
    first = owner.next_epoch()
    owner.begin(0, first, "n1")
    writer.write([append("A", first, entry(0, 1), entry(0, 2))])
    owner.advance(first, checkpoints({0: 2}))
    others = list(backend.reader().partition_records())[1:]
    assert owner.restore(META, [0]).partitions == (0,)
    assert list(backend.reader().partition_records())[1:] == others
    with pytest.raises(StaleEpoch):
        owner.advance(first, checkpoints({0: 3}))
    reader = ChangesReader(backend.reader())
    assert reader.changes(["A"]).entries == ()
    second = owner.next_epoch()
    assert owner.begin(0, second, "n1").stable[0] == 0
    writer.write([append("A", second, entry(0, 1))])
    owner.advance(second, checkpoints({0: 2}))
    assert [change.seqno for change in reader.changes(["A"]).entries] == [1]
