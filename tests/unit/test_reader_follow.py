"""What a follower is told, how it waits, and what it does when the store is away or behind."""

import itertools

import pytest

from channelindex.errors import StoreUnavailable, TokenAhead, TokenInvalid
from channelindex.reading import since_token
from channelindex.reading.changes_reader import ChangesReader
from channelindex.reading.patience import LONGEST_RETRY_S
from tests.support.indexing import ASKED_A, Proxy, Row, filled


def test_a_follower_receives_each_change_and_stops_when_asked(index, reader):
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
    position = since_token.decode(since, index.meta, ASKED_A)
    ahead = tuple(seqno + 3 if vb == 0 else seqno for vb, seqno in enumerate(position.seqnos))
    index.write(epoch, [Row("A", 0, seqno, f"news{seqno}") for seqno in range(11, 15)])
    return since_token.encode(position._replace(seqnos=ahead, horizons=ahead), index.meta, ASKED_A)


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


def test_a_follower_of_an_index_that_stays_behind_learns_of_it(index):
    since = _went_back(index)
    pauses: list[float] = []
    with pytest.raises(TokenAhead, match="vbucket 0 is at seqno 10, the token at 13"):
        next(ChangesReader(index.reader).follow(["A"], since=since, behind_s=0.01, sleep=pauses.append))


def test_a_follower_does_not_hide_other_errors(index, reader):
    with pytest.raises(TokenInvalid):
        next(reader.follow(["A"], since="garbage"))
