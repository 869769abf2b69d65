"""Rollback mitigation: what is let out when."""

from hypothesis import given
from hypothesis import strategies as st

from channelindex.feeds.base import ADVANCED, HISTORY, MUTATION, ROLLBACK, SNAPSHOT, Event
from channelindex.feeds.dcp.connstr import Endpoint
from channelindex.feeds.dcp.messages import Observed
from channelindex.feeds.dcp.persistence import PersistenceGate
from channelindex.model import ORIGIN, Checkpoint

A, B = Endpoint("a", 1), Endpoint("b", 1)
COPIES = {0: [A, B], 1: [A, B]}
UUID = 0xA1


def document(seqno: int, vb: int = 0) -> Event:
    return (MUTATION, vb, seqno, b"key", 0, b"value")


def history(vb: int = 0, vbuuid: int = UUID) -> Event:
    return (HISTORY, vb, ((vbuuid, 0),))


def gate_with(*events: Event) -> PersistenceGate:
    gate = PersistenceGate()
    gate.begin({0: ORIGIN, 1: ORIGIN})
    gate.add([history(), history(1), *events])
    gate.take(COPIES)
    return gate


def test_a_document_waits_for_the_slowest_copy() -> None:
    gate = gate_with((SNAPSHOT, 0, 0, 9), document(1), document(2))
    assert gate.take(COPIES) == []
    gate.observe(0, A, Observed(UUID, 2))
    assert gate.take(COPIES) == []
    gate.observe(0, B, Observed(UUID, 1))
    assert gate.take(COPIES) == [document(1)]
    gate.observe(0, B, Observed(UUID, 2))
    assert gate.take(COPIES) == [document(2)]
    assert (len(gate), gate.withheld_bytes) == (0, 0)


def test_a_copy_that_is_nowhere_is_not_waited_for() -> None:
    gate = gate_with(document(1))
    gate.observe(0, A, Observed(UUID, 1))
    assert gate.take({0: [A]}) == [document(1)]


def test_without_any_copy_nothing_is_let_out() -> None:
    gate = gate_with(document(1))
    assert gate.take({}) == []


def test_vbuckets_do_not_wait_for_each_other() -> None:
    gate = gate_with(document(5), document(3, vb=1))
    gate.observe(1, A, Observed(UUID, 3))
    gate.observe(1, B, Observed(UUID, 3))
    assert gate.take(COPIES) == [document(3, vb=1)]
    assert gate.waiting() == {0: UUID}


def test_what_comes_behind_a_held_event_stays_behind_it() -> None:
    gate = gate_with(document(1), (SNAPSHOT, 0, 2, 9), (ADVANCED, 0, 2))
    assert gate.take(COPIES) == []
    for endpoint in (A, B):
        gate.observe(0, endpoint, Observed(UUID, 1))
    assert gate.take(COPIES) == [document(1), (SNAPSHOT, 0, 2, 9)]


def test_a_rollback_of_what_is_held_concerns_nobody() -> None:
    gate = gate_with((SNAPSHOT, 0, 0, 9), document(1), document(2), (SNAPSHOT, 0, 10, 11), document(10))
    for endpoint in (A, B):
        gate.observe(0, endpoint, Observed(UUID, 2))
    assert gate.take(COPIES)[-1] == (SNAPSHOT, 0, 10, 11)
    gate.add([(ROLLBACK, 0, Checkpoint(UUID, 1, 1, 1))])
    assert gate.take(COPIES) == []
    assert gate.withheld_bytes == 0
    assert gate.unseen_rollbacks == {0: Checkpoint(UUID, 2, 2, 2)}


def test_within_a_snapshot_the_feed_resumes_where_the_consumer_is() -> None:
    gate = gate_with((SNAPSHOT, 0, 0, 9), document(1), document(2))
    for endpoint in (A, B):
        gate.observe(0, endpoint, Observed(UUID, 1))
    gate.take(COPIES)
    gate.add([(ROLLBACK, 0, ORIGIN)])
    assert gate.unseen_rollbacks == {0: Checkpoint(UUID, 1, 0, 9)}


def test_a_rollback_of_what_was_let_out_is_reported() -> None:
    gate = gate_with(document(1))
    for endpoint in (A, B):
        gate.observe(0, endpoint, Observed(UUID, 1))
    gate.take(COPIES)
    gate.add([(ROLLBACK, 0, ORIGIN)])
    assert gate.take(COPIES) == [(ROLLBACK, 0, ORIGIN)]
    assert gate.unseen_rollbacks == {}


def test_what_was_observed_of_another_history_does_not_count() -> None:
    gate = gate_with()
    for endpoint in (A, B):
        gate.observe(0, endpoint, Observed(UUID, 9))
    gate.add([history(vbuuid=0xB2), document(5)])
    assert gate.take(COPIES) == [history(vbuuid=0xB2)]
    gate.observe(0, A, Observed(UUID, 9))  # an answer that was on its way
    gate.observe(0, B, Observed(UUID, 9))
    assert gate.take(COPIES) == []


def test_what_is_dropped_is_not_let_out() -> None:
    gate = gate_with(document(1), document(2, vb=1))
    gate.forget([0])
    for vb in (0, 1):
        for endpoint in (A, B):
            gate.observe(vb, endpoint, Observed(UUID, 9))
    assert gate.take(COPIES) == [document(2, vb=1)]


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(0, 20)), max_size=40))
def test_nothing_comes_out_of_order_or_too_early(steps: list[tuple[int, int, int]]) -> None:
    gate = gate_with()
    sent = {0: 0, 1: 0}
    persisted = {(vb, endpoint): 0 for vb in (0, 1) for endpoint in (A, B)}
    out: dict[int, list[int]] = {0: [], 1: []}
    for vb, which, amount in steps:
        sent[vb] += 1
        gate.add([document(sent[vb], vb)])
        endpoint = (A, B)[which]
        persisted[vb, endpoint] = max(persisted[vb, endpoint], amount)
        gate.observe(vb, endpoint, Observed(UUID, persisted[vb, endpoint]))
        for event in gate.take(COPIES):
            out[event[1]].append(event[2])
    for vb in (0, 1):
        durable = min(sent[vb], persisted[vb, A], persisted[vb, B])
        assert out[vb] == list(range(1, durable + 1))
