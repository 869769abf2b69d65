"""The checker's rules by themselves: what each allows, and where the allowance ends."""

import secrets
from contextlib import closing

import pytest
import redis

from tests.chaos.checker import judge
from tests.chaos.raw_index import ChannelClock, Entry, Partition, RawIndex, read_index
from tests.chaos.reader_rules import FOLLOWED_S
from tests.chaos.record import NOWHERE, Reader, Record, Rollback, StableSample, Told
from tests.chaos.recorder import StableClock
from tests.support.history import Line
from tests.support.stores import META, Backend, append, checkpoints, entry

DOC, VB = "doc-7", 3  # of 16 vbuckets, as CRC-32 puts it
REMOVED = 2
ROLLBACK = Rollback(10.0, 11.0, (VB,), (20,))


def line(rev: str, *channels: str) -> Line:
    return {"id": DOC, "rev": rev, "channels": list(channels)}


def stored(channel: str, seqno: int, rev: str, flags: int = 0, *, epoch: int = 1, block: int = 0) -> Entry:
    return Entry(channel, "g", block, 0, epoch, VB, seqno, DOC, rev, flags)


def index_of(*entries: Entry, stable: int = 50, starts: dict[int, int] | None = None) -> RawIndex:
    """All vbuckets are stable up to *stable*; *starts* are by epoch."""
    history = tuple((epoch, (seqno,) * 16) for epoch, seqno in (starts or {1: 0}).items())
    return RawIndex([Partition(0, history[-1][0], (stable,) * 16, history)], list(entries))


def found(record: Record, index: RawIndex | None = None) -> list[str]:
    return [finding.kind for finding in judge(record, index or index_of())]


# -- entries

MOVED = [line("1-a", "a"), line("2-b", "b")]
TRUE = (
    stored("a", 5, "1-a"),
    stored("*", 5, "1-a"),
    stored("a", 9, "2-b", REMOVED),
    stored("b", 9, "2-b"),
    stored("*", 9, "2-b"),
)


def test_true_entries_are_accepted_also_twice_or_deduplicated() -> None:
    assert found(Record(MOVED), index_of(*TRUE)) == []
    assert found(Record(MOVED), index_of(*TRUE, *TRUE)) == []
    assert found(Record(MOVED), index_of(*TRUE[2:])) == []


@pytest.mark.parametrize("missing", TRUE[2:], ids=lambda each: each.channel)
def test_only_a_newest_state_can_be_lost(missing: Entry) -> None:
    assert found(Record(MOVED), index_of(*(each for each in TRUE if each != missing))) == ["lost"]


def test_entries_that_are_not_stable_or_dead_do_not_count() -> None:
    assert found(Record(MOVED), index_of(*TRUE, stable=8)) == ["lost"] * 3
    assert found(Record(MOVED), index_of(*TRUE, starts={1: 0, 2: 8})) == ["lost"] * 3
    phantom = stored("b", 12, "3-c")
    assert found(Record(MOVED), index_of(*TRUE, phantom, stable=11)) == []
    assert found(Record(MOVED), index_of(*TRUE, phantom, starts={1: 0, 2: 11})) == []
    assert found(Record(MOVED), index_of(*TRUE, phantom._replace(epoch=3), starts={1: 0, 2: 11})) == []


@pytest.mark.parametrize(
    ("kind", "entry"),
    [
        ("phantom", stored("c", 9, "2-b")),
        ("phantom", stored("b", 8, "1-a")),
        ("phantom", stored("b", 8, "2-c")),
        ("phantom", stored("b", 8, "2-b")._replace(vb=4)),
        ("wrong flag", stored("b", 8, "2-b", REMOVED)),
        ("wrong flag", stored("a", 8, "2-b")),
        ("wrong flag", stored("*", 8, "2-b", 1)),
    ],
)
def test_what_was_never_so_is_found(kind: str, entry: Entry) -> None:
    assert found(Record(MOVED), index_of(entry._replace(group="h"), *TRUE)) == [kind]


RESYNCED = [*MOVED, line("2-b", "a", "c")]
MOVED_AGAIN = (stored("a", 12, "2-b"), stored("b", 12, "2-b", REMOVED), stored("c", 12, "2-b"))


def test_resync_puts_a_revision_into_two_states_of_which_the_later_one_is_owed() -> None:
    assert found(Record(RESYNCED), index_of(*TRUE, *MOVED_AGAIN)) == []
    assert found(Record(RESYNCED), index_of(*TRUE[4:], *MOVED_AGAIN)) == []
    for missing in MOVED_AGAIN:
        assert found(Record(RESYNCED), index_of(*TRUE, *(each for each in MOVED_AGAIN if each != missing))) == ["lost"]
    phantom = stored("d", 12, "2-b", REMOVED)
    assert found(Record(RESYNCED), index_of(*TRUE, *MOVED_AGAIN, phantom)) == ["phantom"]


def test_what_was_taken_back_is_a_phantom() -> None:
    record = Record(MOVED, [line("3-c", "b")])
    assert found(record, index_of(*TRUE, stored("b", 12, "3-c"))) == ["lost", "phantom"]


def test_order_counts_within_an_epoch_and_at_the_first_time() -> None:
    star = [stored("*", seqno, rev) for seqno, rev in ((5, "1-a"), (9, "2-b"))]
    rest = TRUE[2:4]
    assert found(Record(MOVED), index_of(*rest, *star, star[0])) == []
    assert found(Record(MOVED), index_of(*rest, star[1], star[0]._replace(epoch=2), starts={1: 0, 2: 50})) == []
    assert found(Record(MOVED), index_of(*rest, star[1], star[0])) == ["order"]


def test_a_clock_must_cover_what_lies_before_it_and_is_not_repeated_behind() -> None:
    index = index_of(*TRUE)
    index.clocks = [ChannelClock("b", "g", 1, ((VB, 9),)), ChannelClock("a", "g", 1, ((VB, 12),))]
    assert found(Record(MOVED), index) == []
    index.clocks = [ChannelClock("b", "g", 1, ((VB, 8),))]
    assert found(Record(MOVED), index) == ["clock"]
    index.entries.append(stored("b", 9, "2-b", block=1))
    assert found(Record(MOVED), index) == []


# -- readers


def told(seqno: int, at: float = 1.0, doc: str = DOC, rev: str = "1-a", stable: int = 50) -> Told:
    return Told("r", at, "*", doc, rev, VB, seqno, False, False, stable)


def found_of(*tellings: Told, rollbacks: tuple[Rollback, ...] = ()) -> list[str]:
    """What is found of a reader that was told all that is so."""
    record = Record([line("1-a")], told=list(tellings), rollbacks=list(rollbacks))
    return found(record, index_of(stored("*", 50, "1-a")))


def test_a_reader_must_have_received_everything_and_nothing_else() -> None:
    entry = stored("*", 9, "1-a")
    assert found(Record([line("1-a")], readers=[Reader("r", "*")], told=[told(9)]), index_of(entry)) == []
    assert found(Record([line("1-a")], readers=[Reader("r", "*")]), index_of(entry)) == ["missed"]
    assert found(Record([line("1-a")], told=[told(9), told(12, doc="doc-0")]), index_of(entry)) == ["missed"]
    assert found(Record([line("1-a")], told=[told(9, rev="0-0")]), index_of(entry)) == ["missed"]


def test_a_reader_goes_forward_but_for_once_after_each_rollback() -> None:
    assert found_of(told(5), told(9)) == []
    assert found_of(told(5), told(9), told(9)) == ["duplicate"]
    assert found_of(told(5), told(9), told(7)) == ["went back"]
    again = [told(seqno, at) for at in (12.0, 13.0, 14.0) for seqno in (5, 9)]
    assert found_of(*again[:4], rollbacks=(ROLLBACK,)) == []
    assert found_of(*again, rollbacks=(ROLLBACK,)) == ["duplicate"]
    assert found_of(*again, rollbacks=(ROLLBACK, ROLLBACK)) == []
    assert found_of(told(5), told(9), told(5, 9.0), rollbacks=(ROLLBACK,)) == ["duplicate"]
    assert found_of(told(5), told(9), told(5, 12.0), rollbacks=(ROLLBACK._replace(vbs=(4,)),)) == ["duplicate"]


def test_a_reader_over_http_may_receive_twice_and_is_judged_by_what_it_believes() -> None:
    def row(rev: str) -> Told:
        return told(0, rev=rev, stable=-1)._replace(vb=NOWHERE)

    assert found_of(row("1-a"), row("1-a")) == []
    assert found_of(row("2-b"), row("1-a")) == [], "a rollback took the other one back"
    assert found_of(row("1-a"), row("2-b")) == ["missed"]


def test_a_return_sends_a_reader_back_a_little_and_not_to_the_beginning() -> None:
    samples = [StableSample(at, (50,) * 8) for at in (1.0, 70.0)]
    again = [told(5, 90.0), told(40, 90.0), told(9, 101.0), told(40, 102.0)]
    after = (ROLLBACK._replace(begun=100.0, returns=True),)

    def found_after(tellings: list[Told], rollbacks: tuple[Rollback, ...]) -> list[str]:
        record = Record([line("1-a")], told=tellings, rollbacks=list(rollbacks), samples=samples)
        return found(record, index_of(stored("*", 50, "1-a")))

    assert found_after(again, after) == ["went back"]
    assert found_after([*again[:2], told(30, 101.0), told(40, 102.0)], after) == []
    assert found_after(again, (ROLLBACK._replace(begun=100.0), *after)) == []
    assert found_after([*again[:2], told(9, 99.0), told(40, 99.0)], after) == ["went back"]


def test_nothing_is_sent_before_it_is_stable_unless_the_clock_was_just_rolled_back() -> None:
    assert found_of(told(5, stable=5), told(9, stable=-1)) == []
    assert found_of(told(5, stable=4)) == ["before stable"]
    assert found_of(told(5, 12.0, stable=4), rollbacks=(ROLLBACK,)) == []
    assert found_of(told(5, 12.0 + FOLLOWED_S, stable=4), rollbacks=(ROLLBACK,)) == ["before stable"]


def test_the_stable_clock_goes_forward_but_for_once_after_each_rollback() -> None:
    samples = [StableSample(at, (7, 7, 7, seqno)) for at, seqno in ((9.0, 30), (12.0, 10), (13.0, 20), (14.0, 15))]
    assert found(Record(samples=samples[:2])) == ["stable moved back"]
    assert found(Record(samples=samples[:3], rollbacks=[ROLLBACK])) == []
    assert found(Record(samples=samples, rollbacks=[ROLLBACK])) == ["stable moved back"]
    assert found(Record(samples=samples[:3], rollbacks=[ROLLBACK._replace(begun=12.5)])) == ["stable moved back"]


def test_a_rollback_that_the_store_lost_is_followed_once_more() -> None:
    seqnos = ((9.0, 30), (12.0, 20), (13.0, 30), (14.0, 25), (15.0, 0), (16.0, 20), (17.0, 15))
    samples = [StableSample(at, (7, 7, 7, seqno)) for at, seqno in seqnos]
    loss = Rollback(12.5, 12.5, tuple(range(4)), ())
    lost = [ROLLBACK, loss]
    assert found(Record(samples=samples[:-1], rollbacks=lost)) == ["stable moved back"]
    lost.append(ROLLBACK.once_more(12.5))
    assert found(Record(samples=samples[:-1], rollbacks=lost)) == []
    assert found(Record(samples=samples, rollbacks=lost)) == ["stable moved back"]


def test_both_branches_of_a_rollback_that_the_store_lost_are_reported_once() -> None:
    def found_after(*rollbacks: Rollback) -> list[str]:
        tellings = [told(5, 12.0), told(5, 12.0, doc="other"), told(6, 12.0)]
        return [kind for kind in found_of(*tellings, rollbacks=rollbacks) if kind != "missed"]

    assert found_after(ROLLBACK.once_more(11.0)) == []
    assert found_after() == ["went back"]
    assert found_of(told(5, 12.0), told(5, 12.0), rollbacks=(ROLLBACK.once_more(13.0),)) == ["duplicate"]


# -- the store's bytes


@pytest.mark.parametrize("store", ["redis_url", "couchbase_url"])
def test_an_index_is_read_with_its_rotated_blocks_and_archived_epochs(store: str, request) -> None:
    """Against the product's own readers, which tests/contract holds to the same."""
    url, name = request.getfixturevalue(store), f"raw-{secrets.token_hex(4)}"
    backend = Backend(url, name)
    with closing(backend), closing(StableClock(url, name)) as clock:
        owner, writer, reader = backend.owner(), backend.writer(block_bytes=100), backend.reader()
        owner.create_or_check(META)
        for epoch in range(1, 400):
            owner.begin(0, epoch, "n1")
            for seqno in (2 * epoch - 1, 2 * epoch):
                writer.write([append("a", epoch, entry(1, seqno, "k", f"{seqno}-{'0' * 32}"))])
            owner.advance(epoch, checkpoints({1: 2 * epoch}))
        index = read_index(url, name)
        (record, *_) = reader.partition_records()
        assert record.archived > 0
        assert [len(index.partitions), index.n_vbuckets, index.damage] == [4, 16, []]
        assert index.partitions[0].stable == record.stable
        assert [epoch for epoch, _ in index.partitions[0].starts] == list(range(1, 400))
        assert [each.seqno for each in index.entries] == list(range(1, 799))
        assert index.entries[-1].block > 10
        assert all(map(index.is_visible, index.entries))
        assert index.bound(7, 1) == 14
        clock_frame = next(clock for clock in index.clocks if clock.position is not None)
        whole = max(index.clocks, key=lambda clock: clock.before)
        assert whole.pairs == ((1, 798),)
        assert clock_frame.before == whole.before - 1
        assert clock_frame.pairs == ((1, index.entries[-1 - index.entries[-1].position].seqno - 1),)
        assert clock.read() == tuple(seqno for each in index.partitions for seqno in each.stable)


def test_damage_is_found_in_the_block_that_has_it(redis_url: str) -> None:
    backend = Backend(redis_url, "raw")
    with closing(backend), redis.Redis.from_url(redis_url) as client:
        backend.owner().create_or_check(META)
        backend.writer().write([append(name, 1, entry(1, 1, "k")) for name in ("whole", "torn", "gone")])
        (torn,) = client.keys("*:b:*:torn")
        client.setrange(torn, client.strlen(torn) - 1, "?")
        client.delete(*client.keys("*:b:*:gone"))
        index = read_index(redis_url, "raw")
        assert [each.channel for each in index.entries] == ["whole"]
        assert len(index.damage) == 2
        assert found(Record(), index) == ["damaged", "damaged"]


def test_who_learns_that_a_document_is_withdrawn_believes_nothing_of_it():
    lost = told(51, doc="lost", stable=60)
    withdrawn = lost._replace(at=2.0, removed=True, withdrawn=True)
    assert found_of(told(50), lost) == ["missed"]
    assert found_of(told(50), lost, withdrawn) == []
