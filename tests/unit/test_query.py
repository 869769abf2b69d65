"""What a reader asks for: any mix of limits, filters and pages brings what one unlimited answer brings."""

from contextlib import closing

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from channelindex.errors import ReaderClosed, TokenInvalid
from channelindex.model import DELETED, REMOVED
from channelindex.reading.changes_reader import ChangesReader
from tests.support.indexing import Row, SmallIndex

VBUCKETS = range(4)
CHANNELS = ("A", "B")
DOCUMENTS = [f"doc{number}" for number in range(8)]  # each has its vbucket

WRITE = st.tuples(
    st.integers(0, len(DOCUMENTS) - 1), st.sampled_from(CHANNELS), st.sampled_from([0, 0, DELETED, REMOVED])
)
READ = st.tuples(st.sampled_from(["changes", "pages"]), st.sampled_from([None, 1, 2, 3]), st.integers(1, 3))
DOC_IDS = st.none() | st.sets(st.sampled_from([*DOCUMENTS, "absent"])).map(sorted)


class Bucket:
    """Writes documents one after the other, all of it stable at once."""

    def __init__(self, index: SmallIndex) -> None:
        self._index = index
        self._epoch = index.begin()
        self._high = [0] * len(VBUCKETS)

    def write(self, number: int, channel: str, flags: int) -> None:
        vb = number % len(VBUCKETS)
        self._high[vb] += 1
        self._index.write(self._epoch, [Row(channel, vb, self._high[vb], DOCUMENTS[number], "1-aa", flags)])
        self._index.advance(self._epoch, {vb: self._high[vb]})

    def roll_back(self, vb: int) -> None:
        """Take back the newest change of *vb*."""
        self._high[vb] = max(0, self._high[vb] - 1)
        self._epoch = self._index.begin(rollback={vb: self._high[vb]})


def read(reader, since, way, limit, n_pages, **asked):
    """At most *n_pages* pages of one answer, or one page; all entries and the last page."""
    if way == "changes":
        page = reader.changes(CHANNELS, since, limit, **asked)
        return list(page.entries), page
    entries = []
    pages = reader.pages(CHANNELS, since, limit, **asked)
    for page, _ in zip(pages, range(n_pages), strict=False):
        entries += page.entries
    return entries, page


_NINE = [(0, "A", 0)] * 8 + [(1, "A", 0)]


@example(  # the first page ends before document 2, of whose vbucket another document is deleted then
    [*_NINE, (2, "A", 0), (0, "A", 0), (6, "A", DELETED)],
    [("changes", 1, 1), ("changes", None, 1)],
    True,
    None,
    "first",
)
@example([*_NINE, (2, "A", 0), (2, "A", 0)], [("changes", 2, 1)], False, None, "first")  # and here, changes
@given(
    st.lists(WRITE, max_size=30), st.lists(READ, min_size=1), st.booleans(), DOC_IDS, st.sampled_from([None, "first"])
)
def test_pages_bring_what_one_unlimited_answer_brings(writes, reads, active_only, doc_ids, since):
    asked = {"active_only": active_only, "doc_ids": doc_ids}
    with closing(SmallIndex()) as index:
        bucket, reader = Bucket(index), ChangesReader(index.reader)
        for write in writes[:10]:
            bucket.write(*write)
        since = since and ChangesReader(index.reader).changes(CHANNELS, None, 2, **asked).since  # keeps its own pages
        for write in writes[10:]:
            bucket.write(*write)
        whole = reader.changes(CHANNELS, since, **asked)
        entries, pending = [], 1
        for turn in range(200):
            way, limit, n_pages = reads[turn % len(reads)]
            found, page = read(reader, since, way, limit, n_pages, **asked)
            assert limit is None or page.pending == 0 or len(page.entries) == limit, (
                "a page is short only if it is last"
            )
            entries += found
            since, pending = page.since, page.pending
            assert pending == len(whole.entries) - len(entries)
            if not pending:
                break
        assert sorted(entries) == sorted(whole.entries)
        assert doc_ids is None or {entry.id for entry in entries} <= set(doc_ids)


@given(st.lists(st.one_of(WRITE, READ, st.sampled_from(VBUCKETS)), max_size=60), DOC_IDS)
def test_who_begins_with_active_only_ends_with_what_everybody_has(steps, doc_ids):
    """The documents that are in the channels; through changes and rollbacks between the pages."""
    with closing(SmallIndex()) as index:
        bucket, reader = Bucket(index), ChangesReader(index.reader)
        known: set[str] = set()
        since = None

        def learn(entries):
            for entry in entries:
                (known.discard if entry.deleted or entry.removed else known.add)(entry.id)

        for step in steps:
            if isinstance(step, int):
                bucket.roll_back(step)
            elif step[0] in ("changes", "pages"):
                entries, page = read(reader, since, *step, active_only=True, doc_ids=doc_ids)
                learn(entries)
                since = page.since
            else:
                bucket.write(*step)
        learn(reader.changes(CHANNELS, since, active_only=True, doc_ids=doc_ids).entries)
        everybody = reader.changes(CHANNELS, doc_ids=doc_ids).entries
        gone = {entry.id for entry in everybody if entry.deleted or entry.removed}
        assert {entry.id for entry in everybody} - gone <= known
        assert not known & gone


@pytest.fixture
def index():
    with closing(SmallIndex()) as small:
        epoch = small.begin()
        small.write(epoch, [Row("A", 0, 1, "one"), Row("A", 0, 2, "two", "2-bb", DELETED), Row("B", 1, 5, "three")])
        small.advance(epoch, {0: 2, 1: 5})
        yield small


@pytest.mark.parametrize("method", ["changes", "pages", "follow"])
@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"channels": "orders"}, r"channels is 'orders', must be a list: write \['orders'\]"),
        ({"channels": b"orders"}, r"write \[b'orders'\]"),
        ({"channels": ["orders", 7]}, "channels has 7, must have strings"),
        ({"channels": ["orders"], "doc_ids": "order-1"}, r"doc_ids is 'order-1', must be a list"),
    ],
)
def test_a_string_is_no_list_of_channels(reader, method, asked, said):
    with pytest.raises(TypeError, match=said):
        getattr(reader, method)(**asked)


def test_now_begins_with_what_comes_next(index, reader):
    now = reader.changes(["A"], "now")
    assert (now.entries, now.pending) == ((), 0)
    assert reader.changes(["A"], now.since).entries == ()
    epoch = index.begin()
    index.write(epoch, [Row("A", 0, 3, "next")])
    index.advance(epoch, {0: 3})
    assert [entry.id for entry in reader.changes(["A"], now.since).entries] == ["next"]


def test_a_token_is_good_for_its_channels_in_any_order_and_refused_for_others(reader):
    since = reader.changes(["A", "B"]).since
    assert reader.changes(["B", "A", "B"], since).entries == ()
    for others in (["A"], ["A", "B", "C"], ["C"], []):
        with pytest.raises(TokenInvalid, match="made for other channels or documents"):
            reader.changes(others, since)


def test_a_token_is_good_for_its_documents_and_refused_for_others(reader):
    since = reader.changes(["A"], doc_ids=["one"]).since
    assert reader.changes(["A"], since, doc_ids=["one"], active_only=True).entries == ()
    for others in (None, [], ["one", "two"]):
        with pytest.raises(TokenInvalid, match="made for other channels or documents"):
            reader.changes(["A"], since, doc_ids=others)


def test_deletions_are_left_out_until_their_vbucket_was_read(index, reader):
    first = reader.changes(["A"], active_only=True)
    assert [entry.id for entry in first.entries] == ["one"]
    epoch = index.begin()
    index.write(epoch, [Row("A", 0, 3, "one", "2-cc", DELETED)])
    index.advance(epoch, {0: 3})
    assert [entry.id for entry in reader.changes(["A"], first.since, active_only=True).entries] == ["one"]


def test_a_closed_reader_refuses_and_its_followers_end(reader):
    followed = reader.follow(["A"], wait_s=0.01)
    assert [entry.id for entry in next(followed).entries] == ["one", "two"]
    reader.close()
    assert list(followed) == []
    with pytest.raises(ReaderClosed):
        reader.changes(["A"])
