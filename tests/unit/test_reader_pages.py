"""What the pages of a reader hold, whoever asks for the next one, and what is kept for it."""

import pytest

from channelindex.reading import changes_reader, kept_pages
from channelindex.reading.changes_reader import ChangesReader
from channelindex.reading.query import Query
from channelindex.reading.snapshot import IndexSnapshot
from tests.support.indexing import Proxy, Row, filled, read_through


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
    monkeypatch.setattr(changes_reader, "READ_AHEAD", 10)
    entries, since = read_through(once, ["A"], 3)
    assert (tuple(entries), since) == (whole.entries, whole.since)
    assert n_blocks < sum(fetched) <= len(entries) / 10 * n_blocks, "each time for ten documents, not for three"


def test_kept_pages_are_not_sent_once_an_epoch_may_have_taken_them_back(index, reader):
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
