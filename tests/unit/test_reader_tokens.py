"""Which tokens a reader takes, and what it makes of an old one."""

import itertools

import pytest

from channelindex import epochs
from channelindex.errors import TokenInvalid
from channelindex.reading import since_token
from channelindex.reading.changes_reader import ChangesReader
from tests.support.indexing import ASKED_A, Proxy, Row, SmallIndex, filled


def test_tokens_from_the_future_are_refused(index, reader):
    start = since_token.decode(None, index.meta, ASKED_A)
    with pytest.raises(TokenInvalid, match="vbucket 2 is at seqno 0, the token at 7"):
        reader.changes(
            ["A"], since_token.encode(start._replace(seqnos=(0, 0, 7, 0), horizons=(0, 0, 7, 0)), index.meta, ASKED_A)
        )
    with pytest.raises(TokenInvalid, match="partition 1 is at epoch 0, the token at 3"):
        reader.changes(["A"], since_token.encode(start._replace(epochs=(0, 3)), index.meta, ASKED_A))


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
