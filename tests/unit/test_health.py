"""Alive and ready: what makes a node say no, and that it says why."""

import pytest

from channelindex.settings import SETTINGS, MetricsSettings
from coordinator.keeper_link import KeeperReport, Trouble
from workers.node.report import NodeReport, Rate
from workers.telemetry.board import Board, NodePhase
from workers.telemetry.health import ALIVE_S, liveness, readiness
from workers.telemetry.monitor import listen_address

S = 10**9
LATER_NS = 1000 * S


@pytest.fixture
def board() -> Board:
    """The board of a node that is ready at LATER_NS, with partitions 0 and 1 of 4."""
    board = Board(4)
    report = NodeReport(board)
    held = KeeperReport({0: 2000.0, 1: 2000.0}, [], n_members=2)
    report.publish(NodePhase.RUNNING, held, 999.0, {0, 1})
    board.supervisor.set(beat_ns=LATER_NS)
    for row in board.partitions[:2]:
        row.set(streaming=1)
    return board


def problems(board: Board) -> str:
    return "; ".join(readiness(board, LATER_NS, MetricsSettings()).problems)


def test_a_node_with_settled_leases_that_keeps_up_is_ready(board):
    assert readiness(board, LATER_NS, MetricsSettings()).is_ok
    assert liveness(board, LATER_NS).is_ok


def test_a_supervisor_that_stands_still_is_neither_alive_nor_ready(board):
    now_ns = LATER_NS + round((ALIVE_S + 1) * S)
    assert not liveness(board, now_ns).is_ok
    assert not readiness(board, now_ns, MetricsSettings()).is_ok


@pytest.mark.parametrize(
    ("held", "problem"),
    [
        (KeeperReport({0: 2000.0, 1: 2000.0}, [], trouble=Trouble(71, "gone")), "cannot be renewed"),
        (KeeperReport({0: 2000.0, 1: 2000.0}, [], n_to_move=3), "3 partitions have to move"),
        (KeeperReport({0: 2000.0, 1: 2000.0}, [], unowned={2: 1.0}), "1 partitions have no owner"),
        (KeeperReport({0: 2000.0, 3: 2000.0}, []), "1 of 2 partitions are not streaming"),
    ],
)
def test_unsettled_leases_are_named(board, held, problem):
    for row in board.partitions:
        row.set(leased_ns=0)
    report = NodeReport(board)
    report.publish(NodePhase.RUNNING, held, 999.0, {0, 1})
    board.supervisor.set(beat_ns=LATER_NS)
    assert problem in problems(board)


def test_lag_above_the_limit_is_named(board):
    board.partitions[1].set(behind_ns=LATER_NS - 29 * S)
    assert not problems(board)
    board.partitions[1].set(behind_ns=LATER_NS - 31 * S)
    assert "a partition lags by 31 s (metrics.ready_lag_s = 30)" in problems(board)


@pytest.mark.parametrize(("limit", "quarantined", "ready"), [(100, 100, True), (100, 101, False), (0, 5000, True)])
def test_documents_in_quarantine_above_the_limit_are_named(board, limit, quarantined, ready):
    board.feeds[0].set(quarantined=quarantined // 2)
    board.feeds[1].set(quarantined=quarantined - quarantined // 2)
    found = readiness(board, LATER_NS, MetricsSettings(ready_quarantined=limit))
    assert found.is_ok is ready
    if not ready:
        assert f"{quarantined} documents could not be decoded" in found.problems[0]


def test_a_node_that_drains_is_not_ready(board):
    report = NodeReport(board)
    report.publish(NodePhase.DRAINING, None, 0.0, set())
    board.supervisor.set(beat_ns=LATER_NS)
    assert "reloading or draining" in problems(board)


def test_a_node_that_has_heard_nothing_of_leases_is_not_ready():
    board = Board(1)
    NodeReport(board)
    board.supervisor.set(beat_ns=LATER_NS)
    assert "no report" in problems(board)


def test_moves_are_counted_and_rows_of_lost_partitions_are_empty():
    board = Board(4)
    report = NodeReport(board)
    report.publish(NodePhase.RUNNING, KeeperReport({0: 9.0, 1: 9.0}, []), 1.0, set())
    board.partitions[1].set(lag=5, behind_ns=3, streaming=1)
    report.publish(NodePhase.RUNNING, KeeperReport({0: 9.0, 2: 9.0}, []), 2.0, set())
    assert (board.supervisor.get("gained"), board.supervisor.get("lost")) == (3, 1)
    assert board.partitions[1].get("lag") == board.partitions[1].get("leased_ns") == 0
    assert board.partitions[2].get("deadline_ns") == 9 * S


def test_a_partition_without_a_worker_does_not_stream():
    board = Board(2)
    report = NodeReport(board)
    report.publish(NodePhase.RUNNING, KeeperReport({0: 9.0, 1: 9.0}, []), 1.0, {0, 1})
    for row in board.partitions:
        row.set(streaming=1)
    report.publish(NodePhase.RUNNING, KeeperReport({0: 9.0, 1: 9.0}, []), 1.0, {1})
    assert [row.get("streaming") for row in board.partitions] == [0, 1]


def test_a_rate_outlives_the_restart_of_a_process():
    rate = Rate()
    assert rate.per_s(0.0, {7: 1000}) == 0
    assert rate.per_s(1.0, {7: 1500}) == 500
    assert rate.per_s(2.0, {8: 500}) == 500
    assert rate.per_s(12.0, {8: 500}) == 0


def test_an_address_is_host_and_port():
    assert listen_address("127.0.0.1:9480") == ("127.0.0.1", 9480)
    assert listen_address("[::1]:0") == ("::1", 0)


@pytest.mark.parametrize("value", ["9480", "localhost", "127.0.0.1:", "::1:80", "h:99999", "http://h:1"])
def test_a_wrong_address_is_reported(value):
    assert "127.0.0.1:9480" in str(SETTINGS["metrics.listen"].wrong(value))


def test_a_worker_that_found_damage_makes_a_node_unready_until_its_successor_does_well(board):
    worker = board.feeds[0]
    worker.set(damaged=1, pid=0)
    assert "1 workers found the index damaged (exit code 73)" in problems(board)
    worker.set(pid=1, started_ns=LATER_NS - S)
    assert "damaged" in problems(board)
    worker.set(started_ns=LATER_NS - 11 * S)
    assert "damaged" not in problems(board)
