"""What a reader is told, what it costs, and what it does when the index is damaged or away."""

import itertools

import pytest

from channelindex import blocks, epochs
from channelindex.checking.rewind import rewind_partitions
from channelindex.errors import IndexCorrupt, StoreUnavailable, TokenAhead, TokenInvalid
from channelindex.model import DELETED, HIDDEN, REMOVED
from channelindex.reading import kept_pages, token
from channelindex.reading import reader as reader_module
from channelindex.reading.paging import Change
from channelindex.reading.patience import LONGEST_RETRY_S
from channelindex.reading.query import Query
from channelindex.reading.reader import ChangesReader
from channelindex.reading.snapshot import IndexSnapshot
from channelindex.stores.base import BlockRef, ChannelState
from tests.support.indexing import Row, SmallIndex

ASKED_A = token.ask(["A"], None)


@pytest.fixture
def index():
    small = SmallIndex()
    yield small
    small.close()


@pytest.fixture
def reader(index):
    return ChangesReader(index.reader)


def told(changes):
    """What was told of which document, short."""
    return [(entry.id, entry.seqno, entry.rev, entry.removed) for entry in changes.entries]


def read_through(reader, channels, limit, since=None):
    """All entries, page by page, each page asked for anew, and the last since."""
    entries = []
    while True:
        page = reader.changes(channels, since, limit)
        entries += page.entries
        since = page.since
        if not page.pending:
            return entries, since


class Proxy:
    """A store whose operations can be replaced one by one."""

    def __init__(self, store, **replaced):
        self._store = store
        self.__dict__.update(replaced)

    def __getattr__(self, name):
        return getattr(self._store, name)


# -- what is told


def test_an_index_without_entries_has_no_changes(reader):
    changes = reader.changes(["A", "B"])
    assert (changes.entries, changes.pending, changes.stats) == ((), 0, (0, 0))
    assert reader.changes(["A", "B"], changes.since).entries == reader.changes([]).entries == ()


def test_only_what_is_stable_is_told_and_the_rest_once_it_is(index, reader):
    epoch = index.begin()
    index.write(epoch, [Row("A", 0, 1, "one"), Row("A", 0, 2, "two"), Row("A", 3, 9, "three")])
    index.advance(epoch, {0: 1})
    first = reader.changes(["A"])
    assert told(first) == [("one", 1, "1-aa", False)]
    index.advance(epoch, {0: 2, 3: 9})
    assert told(reader.changes(["A"], first.since)) == [("two", 2, "1-aa", False), ("three", 9, "1-aa", False)]


def test_a_document_is_told_once_with_its_newest_revision(index, reader):
    epoch = index.begin()
    index.write(epoch, [Row("A", 0, 1, "doc", "1-aa"), Row("A", 0, 2, "other"), Row("A", 0, 3, "doc", "2-bb", DELETED)])
    index.advance(epoch, {0: 3})
    changes = reader.changes(["A"])
    assert told(changes) == [("other", 2, "1-aa", False), ("doc", 3, "2-bb", False)]
    assert [entry.deleted for entry in changes.entries] == [False, True]


def test_membership_counts_more_than_removal_at_the_same_seqno(index, reader):
    epoch = index.begin()
    index.write(epoch, [Row("A", 0, 7, "doc", "2-bb", REMOVED), Row("B", 0, 7, "doc", "3-cc", HIDDEN)])
    index.advance(epoch, {0: 7})
    for order in (["A", "B"], ["B", "A"]):
        (entry,) = reader.changes(order).entries
        assert (entry.rev, entry.removed, entry.flags, entry.channels) == ("3-cc", False, HIDDEN, ("B",))
    (entry,) = reader.changes(["A"]).entries
    assert (entry.rev, entry.removed, entry.channels) == ("2-bb", True, ())


def test_the_channels_of_an_entry_are_those_of_the_request_in_its_order(index, reader):
    epoch = index.begin()
    index.write(epoch, [Row(channel, 0, 7, "doc") for channel in "ABCD"])
    index.advance(epoch, {0: 7})
    (entry,) = reader.changes(["D", "A", "D", "C", "absent"]).entries
    assert entry.channels == ("D", "A", "C")


def test_a_later_membership_elsewhere_replaces_a_removal(index, reader):
    epoch = index.begin()
    index.write(epoch, [Row("A", 0, 7, "doc", "2-bb", REMOVED), Row("B", 0, 9, "doc", "3-cc")])
    index.advance(epoch, {0: 9})
    assert told(reader.changes(["A", "B"])) == [("doc", 9, "3-cc", False)]


@pytest.mark.parametrize("revs", [("9-ff", "10-aa"), ("10-aa", "9-ff")])
def test_of_two_removals_at_one_seqno_the_later_revision_is_told(index, reader, revs):
    epoch = index.begin()
    index.write(epoch, [Row("A", 0, 7, "doc", revs[0], REMOVED), Row("B", 0, 7, "doc", revs[1], REMOVED | DELETED)])
    index.advance(epoch, {0: 7})
    assert told(reader.changes(["A", "B"])) == [("doc", 7, "10-aa", True)]


def test_entries_written_twice_are_told_once(index, reader):
    epoch = index.begin()
    rows = [Row("A", 0, 7, "doc"), Row("A", 1, 3, "other")]
    index.write(epoch, rows)
    index.write(epoch, rows, writer=index.new_writer())
    later = index.begin()
    index.write(later, rows, writer=index.new_writer())
    index.advance(later, {0: 7, 1: 3})
    assert told(reader.changes(["A"])) == [("doc", 7, "1-aa", False), ("other", 3, "1-aa", False)]


def test_an_unusual_revision_and_key_are_told_as_they_are(index, reader):
    epoch = index.begin()
    index.write(epoch, [Row("A", 0, 7, "dök:ü/1", "not a revision"), Row("A", 0, 8, "empty", "")])
    index.advance(epoch, {0: 8})
    assert told(reader.changes(["A"])) == [("dök:ü/1", 7, "not a revision", False), ("empty", 8, "", False)]


# -- epochs


def test_after_a_rollback_its_vbucket_is_told_once_more(index, reader):
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
def test_what_is_withdrawn_is_told_once_however_it_is_paged(index, limit):
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


def test_a_document_that_a_rollback_put_back_is_told_again(index, reader):
    epoch = index.begin()
    index.write(epoch, [Row("A", 0, 5, "doc", "1-aa"), Row("A", 0, 8, "doc", "2-bb", REMOVED), Row("A", 1, 1, "other")])
    index.advance(epoch, {0: 9, 1: 1})
    before = reader.changes(["A"])
    assert ("doc", 8, "2-bb", True) in told(before)
    index.begin(rollback={0: 6})
    assert told(reader.changes(["A"], before.since)) == [("doc", 5, "1-aa", False)]


def test_late_writes_of_a_zombie_are_not_told(index, reader):
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


def test_a_document_left_for_the_next_page_is_told_even_if_a_rollback_makes_it_older_than_this_one(index, reader):
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


# -- tokens


def test_tokens_from_the_future_are_refused(index, reader):
    start = token.decode(None, index.meta, ASKED_A)
    with pytest.raises(TokenInvalid, match="vbucket 2 is at seqno 0, the token at 7"):
        reader.changes(
            ["A"], token.encode(start._replace(seqnos=(0, 0, 7, 0), horizons=(0, 0, 7, 0)), index.meta, ASKED_A)
        )
    with pytest.raises(TokenInvalid, match="partition 1 is at epoch 0, the token at 3"):
        reader.changes(["A"], token.encode(start._replace(epochs=(0, 3)), index.meta, ASKED_A))


def test_a_token_older_than_a_record_reaches_back_is_judged_by_the_archive(index, reader, monkeypatch):
    """Two readers, one of whom had read what a rollback took back, and twenty changes of owner after it."""
    monkeypatch.setattr(epochs, "HISTORY_BYTES", 0)
    first = index.begin()
    index.write(first, [Row("A", 0, 1, "one"), Row("A", 0, 2, "lost"), Row("A", 2, 1, "two")])
    index.advance(first, {0: 1, 2: 1})
    before = reader.changes(["A"]).since
    index.advance(first, {0: 2})
    misled = reader.changes(["A"]).since
    index.begin(rollback={0: 1})
    for seqno in range(2, 22):
        epoch = index.begin()
        index.write(epoch, [Row("A", 0, seqno, f"doc{seqno}")])
        index.advance(epoch, {0: seqno})
    index.write(first, [Row("A", 2, 2, "of a zombie")])
    index.advance(epoch, {2: 2})
    news = [f"doc{seqno}" for seqno in range(2, 22)]
    assert [entry.id for entry in reader.changes(["A"], before).entries] == news
    answer = reader.changes(["A"], misled)
    assert [entry.id for entry in answer.entries] == ["lost", "one", *news]
    assert [entry.id for entry in reader.changes(["A"]).entries] == ["one", *news, "two"]
    up_to_date = ChangesReader(Proxy(index.reader, archived_starts=None))
    index.write(epoch, [Row("A", 0, 22, "newest")])
    index.advance(epoch, {0: 22})
    assert [entry.id for entry in up_to_date.changes(["A"], answer.since).entries] == ["newest"]


def test_an_archive_is_fetched_again_only_when_it_has_grown(index, monkeypatch):
    monkeypatch.setattr(epochs, "HISTORY_BYTES", 0)
    fetched: list[list[int]] = []

    def archived_starts(partitions):
        fetched.append(list(partitions))
        return index.reader.archived_starts(partitions)

    reader = ChangesReader(Proxy(index.reader, archived_starts=archived_starts))

    def take_over(partition, vb, seqno):
        epoch = index.begin([partition])
        index.write(epoch, [Row("A", vb, seqno, f"{vb}-{seqno}")])
        index.advance(epoch, {vb: seqno})
        return [entry.id for entry in reader.changes(["A"]).entries]

    assert take_over(1, 2, 1) == ["2-1"]
    assert take_over(0, 0, 1) == ["0-1", "2-1"]
    assert fetched == []
    assert take_over(0, 0, 2) == ["0-1", "0-2", "2-1"]
    assert fetched == [[0]]
    assert len(reader.changes(["A"]).entries) == 3
    assert fetched == [[0]]
    assert len(take_over(1, 2, 2)) == 4
    assert fetched == [[0], [1]]
    assert len(take_over(0, 0, 3)) == 5
    assert fetched == [[0], [1], [0]]


def test_the_order_of_the_channels_may_change_between_two_pages(index, reader):
    filled(index)
    whole = reader.changes(["A", "B"])
    told, since = [], None
    for channels in itertools.cycle((["A", "B"], ["B", "A"], ["B", "A", "B"])):
        page = reader.changes(channels, since, limit=7)
        told += [entry._replace(channels=tuple(sorted(entry.channels))) for entry in page.entries]
        since = page.since
        if not page.entries:
            break
    assert told == list(whole.entries)


def test_a_token_of_another_index_is_refused(reader):
    other = SmallIndex()
    with pytest.raises(TokenInvalid, match="another index"):
        reader.changes(["A"], ChangesReader(other.reader).changes(["A"]).since)


# -- pages


def filled(index):
    """40 documents over four vbuckets in A, every third in B too; the stable clock at the end."""
    epoch = index.begin()
    for seqno in range(1, 11):
        rows = [Row("A", vb, seqno, f"{vb}-{seqno}") for vb in range(4)]
        index.write(epoch, rows + [row._replace(channel="B") for row in rows if row.seqno % 3 == 0])
    index.advance(epoch, dict.fromkeys(range(4), 10))
    return epoch


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 10, 39, 40, 41])
def test_pages_of_any_size_are_the_whole_answer(index, reader, limit):
    filled(index)
    whole = reader.changes(["A", "B"])
    entries, since = read_through(reader, ["A", "B"], limit)
    assert tuple(entries) == whole.entries
    assert len(entries) == 40
    assert since == whole.since
    at_once = list(reader.pages(["A", "B"], None, limit))
    assert [entry for page in at_once for entry in page.entries] == entries
    assert [page.pending for page in at_once] == [max(0, 40 - limit * (n + 1)) for n in range(len(at_once))]


def test_no_vbucket_waits_for_one_that_keeps_changing(index, reader):
    epoch = filled(index)
    seen, since = set(), None
    for seqno in range(11, 60):
        index.write(epoch, [Row("A", 0, 2 * seqno, "hot"), Row("A", 0, 2 * seqno + 1, f"hot{seqno}")])
        index.advance(epoch, {0: 2 * seqno + 1})
        page = reader.changes(["A"], since, limit=2)
        seen |= {entry.id for entry in page.entries}
        since = page.since
    assert {f"{vb}-{seqno}" for vb in range(4) for seqno in range(1, 11)} <= seen
    assert "hot" in seen


def _changed_between_two_pages(index, reader) -> tuple[str, ChangesReader]:
    """The since of the first page of five, before two documents of vbucket 0 change; and a reader of nothing before."""
    epoch = filled(index)
    since = reader.changes(["A"], None, limit=5).since
    index.write(epoch, [Row("A", 0, 11, "0-1", "2-bb"), Row("A", 0, 12, "0-9", "2-bb")])
    index.advance(epoch, {0: 12})
    return since, ChangesReader(index.reader)


def test_a_document_that_changes_between_two_pages_comes_once_more(index, reader):
    since, another = _changed_between_two_pages(index, reader)
    rest, _ = read_through(another, ["A"], 5, since)
    of_vb = [(entry.id, entry.rev) for entry in rest if entry.vb == 0]
    assert of_vb[:4] == [(f"0-{seqno}", "1-aa") for seqno in (6, 7, 8, 10)]
    assert of_vb[4:] == [("0-1", "2-bb"), ("0-9", "2-bb")]
    assert rest[-1].id == "0-9", "what came later in the vbucket waits until all others had their turn"


def test_pages_of_one_reader_are_as_of_their_first_but_the_last_which_is_as_of_now(index, reader):
    since, another = _changed_between_two_pages(index, reader)
    rest, end = read_through(reader, ["A"], 5, since)
    of_vb = [(entry.id, entry.rev) for entry in rest if entry.vb == 0]
    assert of_vb == [*((f"0-{seqno}", "1-aa") for seqno in range(6, 11)), ("0-1", "2-bb"), ("0-9", "2-bb")]
    assert reader.changes(["A"], end).entries == another.changes(["A"], end).entries == ()


def test_a_page_that_says_nothing_follows_holds_what_was_stable_before_the_call(index, reader):
    epoch = filled(index)
    first = reader.changes(["A"], None, limit=37)
    assert first.pending < 37, "the next page is the last, and kept"
    index.write(epoch, [Row("A", 0, 11, "0-9", "2-bb")])
    index.advance(epoch, {0: 11})
    last = reader.changes(["A"], first.since, limit=37)
    assert last.pending == 0
    assert ("0-9", "2-bb") in [(entry.id, entry.rev) for entry in last.entries]


def test_pages_that_are_asked_for_one_by_one_read_each_block_once(index, monkeypatch):
    filled(index)
    fetched: list[int] = []

    def blocks(refs):
        fetched.append(len(refs))
        return index.reader.blocks(refs)

    once = ChangesReader(Proxy(index.reader, blocks=blocks))
    whole = once.changes(["A"])
    n_blocks, fetched = sum(fetched), []
    entries, since = read_through(once, ["A"], 3)
    assert (tuple(entries), since) == (whole.entries, whole.since)
    assert sum(fetched) == n_blocks > 5
    fetched = []
    monkeypatch.setattr(reader_module, "READ_AHEAD", 10)
    entries, since = read_through(once, ["A"], 3)
    assert (tuple(entries), since) == (whole.entries, whole.since)
    assert n_blocks < sum(fetched) <= len(entries) / 10 * n_blocks, "each time for ten documents, not for three"


def test_kept_pages_are_not_told_once_an_epoch_may_have_taken_them_back(index, reader):
    filled(index)
    first = reader.changes(["A"], None, limit=5)
    index.begin(rollback={0: 7})
    rest, _ = read_through(reader, ["A"], 5, first.since)
    assert [entry.id for entry in rest if entry.vb == 0] == [f"0-{seqno}" for seqno in range(1, 8)]


def test_what_is_kept_is_bounded_and_forgotten_in_time(index, reader, monkeypatch):
    monkeypatch.setattr(kept_pages, "KEPT_DOCUMENTS", 10)
    now = [0.0]
    kept = kept_pages.KeptPages(lambda: now[0])
    filled(index)
    snapshot = IndexSnapshot.take(index.reader)
    query = Query.of(["A"], None, active_only=False)
    pages = [reader.changes(["A"], None, limit) for limit in (34, 35, 36)]  # 6, 5 and 4 documents are left
    for limit, page in zip((34, 35, 36), pages, strict=True):
        kept.keep(query, page, limit, snapshot, iter(()))
    assert kept.take(query, pages[0].since, 34, snapshot) is None
    assert kept.take(query, pages[1].since, 35, snapshot) is not None
    assert kept.take(query, pages[2].since, 36, snapshot) is not None
    kept.keep(query, pages[0], 34, snapshot, iter(()))
    now[0] = kept_pages.KEPT_S
    kept.keep(query, pages[1], 35, snapshot, iter(()))
    assert kept.take(query, pages[0].since, 34, snapshot) is None
    assert kept.take(query, pages[1].since, 35, snapshot) is not None
    assert kept.take(query, pages[1].since, 35, snapshot) is None, "who takes them has them alone"


def test_a_limit_below_one_is_an_error_of_the_caller(reader):
    with pytest.raises(ValueError, match="limit is 0"):
        reader.changes(["A"], None, 0)


# -- the work


def test_only_new_blocks_are_read(index, reader):
    epoch = filled(index)
    whole = reader.changes(["A"])
    n_blocks = index.reader.channel_states(["A"])[0].active_by_group.popitem()[1] + 1
    assert whole.stats.n_blocks == n_blocks > 5
    assert reader.changes(["A"], whole.since).stats.n_blocks == 0
    index.write(epoch, [Row("B", 0, 11, "elsewhere")])
    index.advance(epoch, {0: 11})
    assert reader.changes(["A"], whole.since).stats.n_blocks == 0
    index.write(epoch, [Row("A", 0, 12, "news")])
    index.advance(epoch, {0: 12})
    assert reader.changes(["A"], whole.since).stats.n_blocks <= 2


def test_a_group_without_news_is_not_read(index, reader):
    left, right = index.begin([0]), index.begin([1])
    index.write(left, [Row("A", 0, 1, "left")], [0])
    index.write(right, [Row("A", 3, 1, "right")], [1])
    index.advance(left, {0: 1})
    index.advance(right, {3: 1})
    since = reader.changes(["A"]).since
    index.write(right, [Row("A", 3, 2, "news")], [1])
    index.advance(right, {3: 2})
    changes = reader.changes(["A"], since)
    assert [entry.id for entry in changes.entries] == ["news"]
    assert changes.stats.n_blocks == 0  # the tail that comes with the state has it


def test_dead_entries_in_the_clock_do_not_make_a_group_be_read(index, reader):
    old = index.begin()
    index.write(old, [Row("A", 0, 1, "doc"), Row("A", 0, 50, "unstable")])
    for seqno in (1, 2, 3):
        index.write(old, [Row("A", 1, seqno, "next")])
    index.advance(old, {0: 1, 1: 3})
    since = reader.changes(["A"]).since
    new = index.begin()
    index.advance(new, {0: 60})
    ((_, active),) = index.reader.channel_states(["A"])[0].active_by_group.items()
    assert active > 0, "the clock frame does not sum up the dead entry"
    assert reader.changes(["A"], since).stats.n_blocks == 0


# -- damage


def block_of(index, number):
    (group,) = index.reader.channel_states(["A"])[0].active_by_group
    return BlockRef("A", group, number)


def damaged(index, number, replace, on_corrupt=blocks.refuse):
    wanted = block_of(index, number)

    def some_blocks(refs):
        found = index.reader.blocks(refs)
        return [replace(block) if ref == wanted else block for ref, block in zip(refs, found, strict=True)]

    return ChangesReader(Proxy(index.reader, blocks=some_blocks), on_corrupt)


@pytest.mark.parametrize(
    ("replace", "reason"),
    [
        (lambda block: None, "missing"),
        (lambda block: b"", "does not begin with a header"),
        (lambda block: block[:-1], "bytes announced"),
        (lambda block: block[:-1] + bytes([block[-1] ^ 1]), "checksum differs"),
        (lambda block: block[17 + int.from_bytes(block[1:5], "big") :], "does not begin with a header"),
        (lambda block: block + blocks.pack_frame(blocks.ENTRIES, 1, b"\0\0\0"), "cut off"),
        (lambda block: block + blocks.pack_frame(blocks.ENTRIES, 1, bytes(10) + b"\0\0\5\5key"), "after its frame"),
        (lambda block: block + blocks.pack_frame(blocks.ENTRIES, 1, b"\xff" * 13 + b"\0" + b"k" * 255), "vbucket"),
    ],
)
def test_a_damaged_block_is_an_error_that_names_it(index, replace, reason):
    filled(index)
    ref = block_of(index, 3)
    with pytest.raises(IndexCorrupt, match=reason) as caught:
        damaged(index, 3, replace).changes(["A"])
    assert f"block {ref.group}:3:A: " in str(caught.value)


DAMAGES = [
    (lambda block: None, 4),
    (lambda block: b"", 4),
    (lambda block: b"H" + bytes(3000), 4),
    (lambda block: block[:-1], 4),
    (lambda block: flipped(block, len(block) - 1), 4),
    (lambda block: flipped(block, 3), 0),  # the header says that it ends elsewhere
    (lambda block: flipped(block, 6), 0),  # the header's checksum differs
]


@pytest.mark.parametrize("number", [0, 3, 9])
@pytest.mark.parametrize(("replace", "missed"), DAMAGES)
def test_what_is_damaged_is_left_out_for_those_who_ask_for_it(index, number, replace, missed):
    filled(index)
    told: list[IndexCorrupt] = []
    answer = damaged(index, number, replace, told.append).changes(["A"])
    assert len(answer.entries) == 40 - missed
    assert told
    assert all(f"block {block_of(index, number).key}: " in str(error) for error in told)


@pytest.mark.parametrize(("replace", "missed"), DAMAGES)
def test_a_reader_goes_back_beyond_what_is_damaged(index, reader, replace, missed):
    index.advance(index.begin(), {0: 1})
    since = reader.changes(["A"]).since
    filled(index)
    told: list[IndexCorrupt] = []
    answer = damaged(index, 3, replace, told.append).changes(["A"], since)
    assert len(answer.entries) == 39 - missed
    assert told


def test_a_damaged_clock_is_told_and_the_blocks_are_read_without_it(index):
    filled(index)

    def states(channels):
        (state,) = index.reader.channel_states(channels)
        return [_with_clock(state, b"\0")]

    told: list[IndexCorrupt] = []
    reader = ChangesReader(Proxy(index.reader, channel_states=states), told.append)
    assert len(reader.changes(["A"]).entries) == 40
    assert "clock of channel 'A'" in str(told[0])


def flipped(block: bytes, at: int) -> bytes:
    return block[:at] + bytes([block[at] ^ 1]) + block[at + 1 :]


def test_a_damaged_block_that_is_not_needed_does_no_harm(index, reader):
    epoch = filled(index)
    since = reader.changes(["A"]).since
    index.write(epoch, [Row("A", 0, 11, "news")])
    index.advance(epoch, {0: 11})
    assert [entry.id for entry in damaged(index, 0, lambda block: None).changes(["A"], since).entries] == ["news"]


def test_a_clock_of_a_vbucket_that_the_index_does_not_have_is_corrupt(index):
    epoch = filled(index)

    def states(channels):
        (state,) = index.reader.channel_states(channels)
        return [_with_clock(state, blocks.pack_frame(blocks.HEADER, epoch, blocks.pack_pairs({4: 1})))]

    with pytest.raises(IndexCorrupt, match="vbucket 4 in a clock"):
        ChangesReader(Proxy(index.reader, channel_states=states)).changes(["A"])


def _with_clock(state: ChannelState, clock: bytes) -> ChannelState:
    return ChannelState({name: group._replace(clock=clock) for name, group in state.groups.items()})


def test_an_active_block_that_is_missing_is_told_and_those_before_it_are_read(index):
    filled(index)

    def states(channels):
        (state,) = index.reader.channel_states(channels)
        return [ChannelState({name: group._replace(tail=None) for name, group in state.groups.items()})]

    told: list[IndexCorrupt] = []
    reader = ChangesReader(Proxy(index.reader, channel_states=states), told.append)
    assert len(reader.changes(["A"]).entries) == 36
    assert "missing" in str(told[0])


def test_a_follower_reads_no_block(index, reader):
    """What is new is in the tail that comes with the channel's state."""
    epoch = index.begin()
    index.write(epoch, [Row("A", 0, 1, "old")])
    index.advance(epoch, {0: 1})
    since = reader.changes(["A"]).since
    index.write(epoch, [Row("A", 0, 2, "new")])
    index.advance(epoch, {0: 2})
    follower = ChangesReader(Proxy(index.reader, blocks=lambda refs: pytest.fail(f"{refs} were read")))
    assert [entry.id for entry in follower.changes(["A"], since).entries] == ["new"]


# -- following


def test_a_follower_is_told_each_change_and_stops_when_asked(index, reader):
    epoch = index.begin()
    seqnos = itertools.count(1)

    def write_one(counter, timeout_s):
        seqno = next(seqnos)
        index.write(epoch, [Row("A", 0, seqno, f"doc{seqno}")])
        index.advance(epoch, {0: seqno})
        return index.reader.stable_counter()

    follower = ChangesReader(Proxy(index.reader, wait_stable=write_one))
    told_so_far: list[str] = []

    def enough():
        return len(told_so_far) == 5

    for batch in follower.follow(["A"], stop=enough):
        told_so_far += [entry.id for entry in batch.entries]
    assert told_so_far == [f"doc{n}" for n in range(1, 6)]


def test_a_follower_gets_pages_of_the_limit(index, reader):
    filled(index)
    batches = list(itertools.islice(reader.follow(["A"], limit=15), 3))
    assert [(len(batch.entries), batch.pending) for batch in batches] == [(15, 25), (15, 10), (10, 0)]


def test_a_follower_waits_boundedly_and_does_not_read_where_nothing_moved(index):
    filled(index)
    waits, stops = [], iter([False, False, False, True])

    def wait(counter, timeout_s):
        waits.append(timeout_s)
        return counter

    reads = []

    def view():
        reads.append(1)
        return index.reader.stable_view()

    follower = ChangesReader(Proxy(index.reader, wait_stable=wait, stable_view=view))
    assert len(list(follower.follow(["A"], stop=lambda: next(stops), wait_s=0.25))) == 1
    assert waits == [0.25, 0.25]
    assert len(reads) == 1


def test_a_follower_outlives_a_store_that_is_away_and_misses_nothing(index):
    epoch = filled(index)
    away = iter([True] * 9 + [False] + [True] * 2)
    pauses: list[float] = []

    def view():
        if next(away, False):
            raise StoreUnavailable("gone")
        return index.reader.stable_view()

    def wait(counter, timeout_s):
        index.write(epoch, [Row("A", 0, 11, "news")])
        index.advance(epoch, {0: 11})
        return index.reader.stable_counter()

    follower = ChangesReader(Proxy(index.reader, stable_view=view, wait_stable=wait))
    batches = list(itertools.islice(follower.follow(["A"], sleep=pauses.append), 2))
    assert [len(batch.entries) for batch in batches] == [40, 1]
    assert len(pauses) == 11
    assert 0.05 <= pauses[0] <= 0.1
    assert max(pauses) <= LONGEST_RETRY_S
    assert pauses[9] <= 0.1, "a success starts the pauses anew"


def _went_back(index) -> str:
    """A token that is three seqnos ahead of the index; its partition 0 is stable at 10."""
    epoch = filled(index)
    since = ChangesReader(index.reader).changes(["A"]).since
    position = token.decode(since, index.meta, ASKED_A)
    ahead = tuple(seqno + 3 if vb == 0 else seqno for vb, seqno in enumerate(position.seqnos))
    index.write(epoch, [Row("A", 0, seqno, f"news{seqno}") for seqno in range(11, 15)])
    return token.encode(position._replace(seqnos=ahead, horizons=ahead), index.meta, ASKED_A)


def test_a_follower_waits_for_a_store_that_lost_its_newest_writes_and_misses_nothing(index):
    since = _went_back(index)
    pauses: list[float] = []

    def catch_up(pause_s):
        pauses.append(pause_s)
        if len(pauses) == 3:
            index.advance(index.reader.partition_records()[0].epoch, {0: 14})

    follower = ChangesReader(index.reader)
    batch = next(follower.follow(["A"], since=since, behind_s=1000, sleep=catch_up))
    assert [entry.id for entry in batch.entries] == ["news14"]
    assert len(pauses) == 3


def test_a_follower_of_an_index_that_stays_behind_is_told_so(index):
    since = _went_back(index)
    pauses: list[float] = []
    with pytest.raises(TokenAhead, match="vbucket 0 is at seqno 10, the token at 13"):
        next(ChangesReader(index.reader).follow(["A"], since=since, behind_s=0.01, sleep=pauses.append))


def test_a_follower_does_not_hide_other_errors(index, reader):
    with pytest.raises(TokenInvalid):
        next(reader.follow(["A"], since="garbage"))


def test_the_principal_counter_is_the_stores(index, reader):
    index.writer.write([], ["_sync:user:ann"])
    assert reader.principal_counter("_sync:user:ann") == 1
    assert reader.principal_counter("") == 1
