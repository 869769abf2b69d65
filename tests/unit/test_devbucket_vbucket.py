"""The model behind the dev bucket: what a vbucket holds and streams, its histories, and who must roll back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devbucket import vbucket as vbucket_module
from devbucket.history import MAX_ENTRIES, FailoverLog
from devbucket.items import ALIVE, EXPIRED, Item, join_value
from devbucket.vbucket import VBucket

KEYS = st.sampled_from([b"a", b"b", b"c", b"d"])
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), KEYS),
        st.tuples(st.just("delete"), KEYS),
        st.tuples(st.just("failover"), st.integers(0, 6)),
        st.tuples(st.just("purge"), st.none()),
        st.tuples(st.just("sync"), st.integers(0, 2)),
    ),
    max_size=60,
)

Position = tuple[int, int]  # vbuuid, seqno
State = dict[bytes, tuple[int, bytes]]  # live documents: seqno and value by key


class Oracle:
    """Every change there ever was, one after the other."""

    def __init__(self) -> None:
        self.changes: list[tuple[int, bytes, bytes | None]] = []

    def newest(self) -> dict[bytes, tuple[int, bytes | None]]:
        return {key: (seqno, value) for seqno, key, value in self.changes}

    def live(self) -> State:
        return {key: (seqno, value) for key, (seqno, value) in self.newest().items() if value is not None}


class Client:
    """Keeps the state of every snapshot that it has seen to its end, as a careful client must.

    After a rollback it resumes at the last of them that is not beyond the rollback seqno: what a snapshot deduplicated
    is not sent again to who resumes in its middle.
    """

    def __init__(self) -> None:
        self.states: list[tuple[Position, State]] = [((0, 0), {})]

    def synchronize(self, vbucket: VBucket) -> State:
        while True:
            (vbuuid, seqno), state = self.states[-1]
            rollback = vbucket.rollback_for(vbuuid, seqno, seqno, seqno)
            if rollback is None:
                return self._stream(vbucket, seqno, dict(state))
            before = len(self.states)
            self.states = [(place, state) for place, state in self.states if place[1] <= rollback]
            if len(self.states) == before:
                self.states.pop()

    def _stream(self, vbucket: VBucket, seqno: int, state: State) -> State:
        items = vbucket.items_after(seqno)
        assert [item.seqno for item in items] == sorted({item.seqno for item in items})
        for item in items:
            state.pop(item.key, None)
            if item.fate == ALIVE:
                state[item.key] = (item.seqno, item.value)
        self.states.append(((vbucket.failover_log.vbuuid, vbucket.high_seqno), state))
        return state


def run_change(vbucket: VBucket, oracle: Oracle, name: str, argument) -> None:
    if name == "set":
        item = vbucket.write(argument, b'{"n":%d}' % vbucket.high_seqno, 1)
        oracle.changes.append((item.seqno, argument, item.value))
    elif name == "delete":
        item = vbucket.delete(argument)
        oracle.changes.append((item.seqno, argument, None))
    elif name == "purge":
        vbucket.purge()
    elif name == "failover" and vbucket.high_seqno - argument >= max(0, vbucket.purge_seqno):
        vbucket.failover(argument)
        oracle.changes = [change for change in oracle.changes if change[0] <= vbucket.high_seqno]
    vbucket.check()


@given(OPERATIONS, st.integers(0, 70))
def test_stream_from_any_seqno_equals_the_oracle(operations, start):
    vbucket, oracle = VBucket(0), Oracle()
    for name, argument in operations:
        run_change(vbucket, oracle, name, argument)
    expected = {
        (seqno, key, value)
        for key, (seqno, value) in oracle.newest().items()
        if seqno > start and (value is not None or seqno > vbucket.purge_seqno)
    }
    streamed = vbucket.items_after(start)
    assert {(item.seqno, item.key, item.value if not item.deleted else None) for item in streamed} == expected
    assert vbucket.high_seqno == (oracle.changes[-1][0] if oracle.changes else 0)
    for key, (seqno, _) in oracle.live().items():
        assert item_of(vbucket, key).seqno == seqno


@given(OPERATIONS)
def test_clients_that_follow_the_rollback_rules_end_with_the_bucket(operations):
    vbucket, oracle = VBucket(0), Oracle()
    clients = [Client(), Client(), Client()]
    for name, argument in operations:
        if name == "sync":
            assert clients[argument].synchronize(vbucket) == oracle.live()
        else:
            run_change(vbucket, oracle, name, argument)
    for client in clients:
        assert client.synchronize(vbucket) == oracle.live()


def test_compaction_keeps_what_a_failover_needs(monkeypatch):
    monkeypatch.setattr(vbucket_module, "MAX_LOSS", 10)
    vbucket = VBucket(0)
    for i in range(200):
        vbucket.write(b"key%d" % (i % 3), b"%d" % i, 0)
    assert len(vbucket._log) < 40
    with pytest.raises(ValueError, match="cannot lose 190 of 200"):
        vbucket.failover(190)
    vbucket.failover(10)
    assert [(item.seqno, item.value) for item in vbucket.items_after(0)] == [
        (i, b"%d" % (i - 1)) for i in (188, 189, 190)
    ]


def test_failover_cannot_lose_more_than_there_is():
    vbucket = VBucket(0)
    vbucket.write(b"k", b"1", 1)
    with pytest.raises(ValueError, match="cannot lose 2 of 1"):
        vbucket.failover(2)


def test_failover_cannot_bring_back_what_was_purged():
    vbucket = VBucket(0)
    vbucket.write(b"k", b"1", 1)
    vbucket.delete(b"k")
    vbucket.write(b"other", b"1", 1)
    assert vbucket.purge() == 2
    with pytest.raises(ValueError, match="cannot lose 2 of 3"):
        vbucket.failover(2)
    vbucket.failover(1)


def test_failover_log_forgets_its_oldest_history():
    log = FailoverLog()
    first = log.vbuuid
    for seqno in range(1, MAX_ENTRIES):
        log.branch(seqno)
    assert log.end_of(first, 100) == 1
    log.branch(MAX_ENTRIES)
    assert len(log.entries) == MAX_ENTRIES
    assert log.end_of(first, 100) is None


def test_histories_that_began_after_the_branch_are_gone():
    log = FailoverLog()
    old = log.vbuuid
    log.branch(10)
    lost = log.vbuuid
    log.branch(4)
    assert [seqno for _, seqno in log.entries] == [4, 0]
    assert log.end_of(lost, 20) is None
    assert log.end_of(old, 20) == 4


def item_of(vbucket: VBucket, key: bytes) -> Item:
    item = vbucket.find(key)
    assert item is not None
    return item


def test_cas_rises_while_the_clock_stands_still():
    vbucket = VBucket(0, clock=lambda: 1000.0)
    assert vbucket.next_cas() < vbucket.next_cas() < vbucket.write(b"k", b"", 0).cas


def test_rev_of_a_new_key_is_above_all_deleted_ones():
    vbucket = VBucket(0)
    assert vbucket.write(b"a", b"", 0).rev == 1
    assert vbucket.delete(b"a").rev == 2
    assert vbucket.write(b"b", b"", 0).rev == 3
    assert vbucket.write(b"a", b"", 0).rev == 3


def test_expired_document_becomes_a_tombstone_with_its_system_xattrs():
    now = 1000.0
    vbucket = VBucket(0, clock=lambda: now)
    value, datatype = join_value({"_sync": b"{}", "mine": b"1"}, b"{}")
    vbucket.write(b"k", value, datatype, expiry=1005)
    now = 1004.0
    assert item_of(vbucket, b"k").fate == ALIVE
    now = 1005.0
    tombstone = item_of(vbucket, b"k")
    assert (tombstone.fate, tombstone.seqno, tombstone.xattrs()) == (EXPIRED, 2, {"_sync": b"{}"})
    assert vbucket.find(b"k") is tombstone


def test_loading_below_the_high_seqno_is_refused():
    vbucket = VBucket(0)
    vbucket.load(5, b"a", b"1")
    with pytest.raises(ValueError, match="seqno 5 is not above the high seqno 5"):
        vbucket.load(5, b"b", b"2")
    vbucket.load(9, b"a", b"3")
    assert [item.seqno for item in vbucket.items_after(0)] == [9]


@given(st.lists(st.one_of(KEYS, st.just(None)), max_size=60), st.integers(0, 20))
def test_every_source_checkpoint_is_a_consistent_view_at_its_end(changes, max_loss):
    """*changes*: a key that is written, or None where a checkpoint is closed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vbucket_module, "MAX_LOSS", max_loss)
        vbucket = VBucket(0)
        state_at: dict[int, dict[bytes, int]] = {0: {}}
        for key in changes:
            if key is None:
                vbucket.new_checkpoint()
            else:
                seqno = vbucket.write(key, b"", 0).seqno
                state_at[seqno] = state_at[seqno - 1] | {key: seqno}
        position = 0
        seen: dict[bytes, int] = {}
        while position < vbucket.high_seqno:
            _, end = vbucket.checkpoint_of(position + 1)
            seen |= {item.key: item.seqno for item in vbucket.items_after(position, end)}
            assert seen == state_at[end]
            position = end


def test_failover_forgets_checkpoints_that_it_loses():
    vbucket = VBucket(0)
    for _ in range(3):
        vbucket.write(b"k", b"", 0)
        vbucket.new_checkpoint()
    vbucket.failover(2)
    vbucket.write(b"k", b"", 0)
    assert vbucket.checkpoint_of(1) == (1, 2)
