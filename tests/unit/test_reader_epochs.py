"""What a reader is told once an epoch has begun: after rollbacks, beside zombies, in the middle of a call."""

import pytest

from channelindex.checking.rewind import rewind_partitions
from channelindex.model import DELETED, REMOVED
from channelindex.reading.changes_reader import ChangesReader
from channelindex.reading.paging import Change
from tests.support.indexing import Proxy, Row, filled, read_through, told


def test_after_a_rollback_its_vbucket_is_sent_once_more(index, reader):
    epoch = index.begin()
    index.write(epoch, [Row("A", 0, 5, "kept"), Row("A", 0, 8, "lost", "1-old"), Row("A", 0, 9, "back", "1-old")])
    index.advance(epoch, {0: 9})
    before = reader.changes(["A"])
    later = index.begin(rollback={0: 5})
    gone = [("back", 9, "1-old", True), ("lost", 8, "1-old", True)]
    assert told(reader.changes(["A"], before.since)) == [*gone, ("kept", 5, "1-aa", False)]
    index.write(later, [Row("A", 0, 7, "back", "1-new")])
    index.advance(later, {0: 9})
    now = [("kept", 5, "1-aa", False), ("back", 7, "1-new", False)]
    assert told(reader.changes(["A"])) == now
    after = reader.changes(["A"], before.since)
    assert told(after) == [("lost", 8, "1-old", True), *now]
    assert told(reader.changes(["A"], after.since)) == []


def _with_withdrawn(index):
    """Six documents in A, of which a reader at the returned token knows all; a rollback leaves three, one as it was."""
    epoch = index.begin()
    index.write(epoch, [Row("A", 0, seqno, f"doc{seqno}") for seqno in range(1, 6)])
    index.write(epoch, [Row("A", 0, 6, "doc2", "2-bb"), Row("A", 0, 7, "doc3", "2-bb", REMOVED)])
    index.write(epoch, [Row("A", 0, 8, "gone", "1-aa", DELETED), Row("B", 0, 9, "doc5", "2-bb")])
    index.write(epoch, [Row("A", 0, 9, "doc5", "2-bb", REMOVED), Row("B", 1, 1, "b")])
    index.advance(epoch, {0: 9, 1: 1})
    reader = ChangesReader(index.reader)
    since = reader.changes(["A"]).since, reader.changes(["B", "A"]).since
    index.begin(rollback={0: 3})
    return since


def test_what_a_rollback_took_back_and_nothing_replaced_is_withdrawn(index, reader):
    """A document that is there, as it was or as it is, is told so; of one that the reader took for gone it is not."""
    since, since_both = _with_withdrawn(index)
    (entry, *others) = reader.changes(["A"], since).entries
    assert entry == Change("doc4", "1-aa", 4, 0, False, True, 0, (), ("A",), withdrawn=True)
    assert [(other.id, other.rev, other.withdrawn) for other in others] == [
        ("doc1", "1-aa", False),
        ("doc2", "1-aa", False),
        ("doc3", "1-aa", False),
    ]
    both = [(entry.id, entry.rev, entry.left) for entry in reader.changes(["B", "A"], since_both).entries[:2]]
    assert both == [("doc5", "2-bb", ("B",)), ("doc4", "1-aa", ("A",))]
    assert not any(entry.withdrawn for entry in reader.changes(["A"]).entries), "who never knew it is told nothing"


@pytest.mark.parametrize("limit", [1, 2, 3, None])
def test_what_is_withdrawn_is_sent_once_however_it_is_paged(index, limit):
    epoch = index.begin()
    index.write(epoch, [Row("A", vb, seqno, f"{vb}-{seqno}") for vb in (0, 1, 2) for seqno in range(1, 6)])
    index.advance(epoch, {0: 5, 1: 5, 2: 5})
    since = ChangesReader(index.reader).changes(["A"]).since
    epoch = index.begin(rollback={0: 2, 1: 0, 2: 4})
    index.write(epoch, [Row("A", 1, 3, "1-4")])
    index.advance(epoch, {1: 3})
    told, pending = [], 1
    while pending:  # each page by a reader of its own
        page = ChangesReader(index.reader).changes(["A"], since, limit, active_only=True)
        told += [(entry.id, entry.withdrawn) for entry in page.entries]
        since, pending = page.since, page.pending
    withdrawn = ["0-5", "0-4", "0-3", "1-5", "1-3", "1-2", "1-1", "2-5"]
    there = ["0-1", "0-2", "1-4", "2-1", "2-2", "2-3", "2-4"]
    assert told == [(key, True) for key in withdrawn] + [(key, False) for key in there]
    assert ChangesReader(index.reader).changes(["A"], since).entries == ()


@pytest.mark.parametrize(
    ("clock", "through"), [(0, 0), (2, 0), (2, 3)], ids=["to 0", "to 2", "below what is compacted"]
)
def test_nothing_is_withdrawn_where_the_index_alone_goes_back(index, reader, clock, through):
    epoch = index.begin()
    index.write(epoch, [Row("A", 0, seqno, f"doc{seqno}") for seqno in range(1, 5)])
    index.advance(epoch, {0: 4})
    since = reader.changes(["A"]).since
    if through:
        index.compaction().raise_compacted({0: (through, 0)}, {0: epoch})
    list(rewind_partitions(index.owner, index.reader, [0], {0: clock}, "test"))
    for _ in range(2):
        epoch = index.begin()
        assert not [entry for entry in reader.changes(["A"], since).entries if entry.withdrawn]
    index.write(epoch, [Row("A", 0, seqno, f"doc{seqno}") for seqno in range(1, 5)])
    index.advance(epoch, {0: 4})
    again = told(reader.changes(["A"], since))
    assert again[-1] == ("doc4", 4, "1-aa", False)
    assert not any(removed for *_, removed in again)


def test_only_documents_that_are_asked_for_are_withdrawn(index, reader):
    epoch = index.begin()
    index.write(epoch, [Row("A", 0, 1, "x"), Row("A", 0, 2, "y")])
    index.advance(epoch, {0: 2})
    since = reader.changes(["A"], doc_ids=["x"]).since
    index.begin(rollback={0: 0})
    assert [entry.id for entry in reader.changes(["A"], since, doc_ids=["x"]).entries] == ["x"]


def test_a_document_that_a_rollback_put_back_is_sent_again(index, reader):
    epoch = index.begin()
    index.write(epoch, [Row("A", 0, 5, "doc", "1-aa"), Row("A", 0, 8, "doc", "2-bb", REMOVED), Row("A", 1, 1, "other")])
    index.advance(epoch, {0: 9, 1: 1})
    before = reader.changes(["A"])
    assert ("doc", 8, "2-bb", True) in told(before)
    index.begin(rollback={0: 6})
    assert told(reader.changes(["A"], before.since)) == [("doc", 5, "1-aa", False)]


def test_late_writes_of_a_zombie_are_not_sent(index, reader):
    old = index.begin()
    index.write(old, [Row("A", 0, 1, "doc")])
    index.advance(old, {0: 1})
    zombie = index.writer
    new = index.begin()
    index.write(new, [Row("A", 0, 2, "new")], writer=index.new_writer())
    index.advance(new, {0: 5})
    index.write(old, [Row("A", 0, 3, "undead")], writer=zombie)
    assert [entry.id for entry in reader.changes(["A"]).entries] == ["doc", "new"]


def test_what_happens_after_the_records_were_read_is_left_for_the_next_time(index):
    old = index.begin()
    index.write(old, [Row("A", 0, seqno, f"old{seqno}") for seqno in range(1, 10)])
    index.advance(old, {0: 9})

    def records_then_a_rollback(partitions):
        records = index.reader.partition_records(partitions)
        new = index.begin(rollback={0: 4})
        for seqno in range(5, 15):  # rotates blocks and folds the clock log under the new epoch
            index.write(new, [Row("A", 0, seqno, f"new{seqno}")], writer=index.writer)
        index.advance(new, {0: 14})
        return records

    interrupted = ChangesReader(Proxy(index.reader, partition_records=records_then_a_rollback)).changes(["A"])
    assert [entry.id for entry in interrupted.entries] == [f"old{seqno}" for seqno in range(1, 10)]
    after = ChangesReader(index.reader).changes(["A"], interrupted.since)
    kept, new = [f"old{seqno}" for seqno in range(1, 5)], [f"new{seqno}" for seqno in range(5, 15)]
    withdrawn = [f"old{seqno}" for seqno in range(9, 4, -1)]
    assert [entry.id for entry in after.entries] == withdrawn + kept + new


def test_a_group_that_a_later_epoch_folded_is_not_skipped_by_an_older_view(index):
    old = index.begin()
    index.write(old, [Row("A", 0, 1, "seen")])
    index.advance(old, {0: 1})
    since = ChangesReader(index.reader).changes(["A"]).since
    index.write(old, [Row("A", 0, 2, "news")])
    index.advance(old, {0: 2})

    def records_then_a_rotation(partitions):
        records = index.reader.partition_records(partitions)
        new = index.begin()
        for seqno in range(3, 12):
            index.write(new, [Row("A", 0, seqno, f"later{seqno}")])
        return records

    interrupted = ChangesReader(Proxy(index.reader, partition_records=records_then_a_rotation))
    assert [entry.id for entry in interrupted.changes(["A"], since).entries] == ["news"]


def test_a_document_left_for_the_next_page_is_sent_even_if_a_rollback_makes_it_older_than_this_one(index, reader):
    epoch = index.begin()
    index.write(epoch, [Row("A", 0, 1, "doc"), Row("A", 0, 2, "other"), Row("A", 0, 3, "doc", "2-bb")])
    index.advance(epoch, {0: 3})
    page = reader.changes(["A"], None, limit=1)
    assert told(page) == [("other", 2, "1-aa", False)]
    index.begin(rollback={0: 2})
    assert ("doc", 1, "1-aa", False) in told(reader.changes(["A"], page.since))


def test_a_vbucket_that_was_rolled_back_waits_for_its_turn_like_any_other(index, reader):
    epoch = index.begin()
    index.write(epoch, [Row("A", 1, seqno, f"1-{seqno}") for seqno in range(1, 10)])
    index.advance(epoch, {1: 9})
    since = reader.changes(["A"]).since
    epoch = index.begin(rollback={1: 2})
    index.write(epoch, [Row("A", 0, 1, "0-1"), Row("A", 0, 2, "0-2")])
    index.advance(epoch, {0: 2})
    entries, _ = read_through(reader, ["A"], 1, since)
    withdrawn = [entry.id for entry in entries if entry.withdrawn]
    assert withdrawn == [f"1-{seqno}" for seqno in range(9, 2, -1)]
    assert [entry.id for entry in entries] == [*withdrawn, "0-1", "0-2", "1-1", "1-2"]


def test_a_restart_of_the_owner_does_not_begin_anything_again(index, reader):
    filled(index)
    page = reader.changes(["A"], None, limit=15)
    index.begin()
    rest = reader.changes(["A"], page.since)
    assert len(rest.entries) == 25
    assert {entry.id for entry in rest.entries}.isdisjoint(entry.id for entry in page.entries)
