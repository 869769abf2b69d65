"""Supervisor and keeper tell each other the newest state, and neither ever waits or grows."""

import os

import msgspec
import pytest

from channelindex.errors import InvariantBroken
from coordinator.keeper_link import KeeperLink, KeeperReport, Orders, SupervisorLink, keeper_link


@pytest.fixture
def ends():
    supervisor, keeper = keeper_link()
    yield supervisor, keeper
    supervisor.close()
    keeper.close()


def _held(*partitions: int, wanted: list[int] | None = None, last_order: int = 0) -> KeeperReport:
    return KeeperReport(dict.fromkeys(partitions, 1.5), wanted or [], last_order=last_order)


def test_newest_report_wins(ends: tuple[KeeperLink, SupervisorLink]):
    supervisor, keeper = ends
    keeper.report(_held(1))
    keeper.report(_held(1, 2))
    assert supervisor.poll() == _held(1, 2)
    assert supervisor.poll() is None


def test_orders_arrive_in_order(ends):
    supervisor, keeper = ends
    supervisor.release([3, 1])
    supervisor.publish_status("{}")
    supervisor.drain()
    assert keeper.orders() == [
        Orders(1, [1, 3], False, ""),
        Orders(2, [], False, "{}"),
        Orders(3, [], True, ""),
    ]


def test_released_partition_is_hidden_until_the_keeper_knows_of_it(ends):
    supervisor, keeper = ends
    keeper.report(_held(1, 2, wanted=[2]))
    supervisor.release([2])
    assert supervisor.poll() == _held(1)
    keeper.report(_held(1, 2, last_order=1))
    assert supervisor.poll() == _held(1, 2, last_order=1)


def test_orders_that_do_not_fit_are_merged_and_sent_later(ends):
    supervisor, keeper = ends
    n_orders = 3000
    for number in range(n_orders):
        supervisor.release([number % 7])
        supervisor.publish_status(str(number) + "x" * 500)
    supervisor.drain()
    early = keeper.orders()
    assert len(early) < n_orders
    supervisor.poll()
    (late,) = keeper.orders()
    assert late.number == early[-1].number + 1
    assert late.drain
    assert late.status.startswith(str(n_orders - 1))
    assert late.release == list(range(7))


def test_release_that_waits_to_be_sent_is_hidden_too(ends):
    supervisor, keeper = ends
    keeper.report(_held(1, 2))
    while supervisor._unsent is None:
        supervisor.publish_status("x" * 1000)
    supervisor.release([2])
    number = supervisor._unsent.number
    assert supervisor.poll() == _held(1)
    keeper.report(_held(1, 2, last_order=number - 1))
    assert supervisor.poll() == _held(1, last_order=number - 1)


def test_reports_that_nobody_reads_are_dropped(ends):
    supervisor, keeper = ends
    for _ in range(3000):
        keeper.report(_held(*range(64)))
    while supervisor.poll():
        pass
    keeper.report(_held(7))
    assert supervisor.poll() == _held(7)


@pytest.mark.parametrize("unread", [False, True])
def test_each_end_notices_that_the_other_is_gone(unread):
    for leaver, stayer in (keeper_link(), keeper_link()[::-1]):
        if unread:
            os.write(stayer.fileno(), msgspec.msgpack.encode(None))
        leaver.close()
        read = stayer.poll if isinstance(stayer, KeeperLink) else stayer.orders
        assert not read()
        assert stayer.closed
        stayer.close()


def test_telling_someone_who_is_gone_is_harmless(ends):
    supervisor, keeper = ends
    keeper.close()
    supervisor.drain()
    assert supervisor.closed
    supervisor.release([1])
    assert supervisor.poll() is None


def test_status_that_is_too_long_is_refused(ends):
    with pytest.raises(InvariantBroken, match="message between two processes"):
        ends[0].publish_status("x" * (1 << 18))
