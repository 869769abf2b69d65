import os
import socket
import time

import pytest

from channelindex.errors import ConfigInvalid
from workers.node.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    """A service manager's socket, and the value of NOTIFY_SOCKET for it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.settimeout(10)
        if request.param == "path":
            address = str(tmp_path / "notify")
            receiver.bind(address)
        else:
            address = f"@channelindex-test-{os.getpid()}"
            receiver.bind(f"\0{address[1:]}")
        yield receiver, address


def test_messages_arrive_as_the_manual_says(manager):
    receiver, address = manager
    notifier = Notifier({"NOTIFY_SOCKET": address})

    def sent() -> str:
        return str(receiver.recv(4096), "utf-8")

    notifier.ready("2 workers")
    assert sent() == "READY=1\nSTATUS=2 workers"
    notifier.status("lag 3")
    assert sent() == "STATUS=lag 3"
    notifier.watchdog()
    assert sent() == "WATCHDOG=1"
    notifier.extend_timeout(1.5)
    assert sent() == "EXTEND_TIMEOUT_USEC=1500000"
    notifier.stopping()
    assert sent() == "STOPPING=1"
    before_us = time.monotonic_ns() // 1000
    notifier.reloading()
    state, stamp = sent().split("\n")
    assert state == "RELOADING=1"
    assert before_us <= int(stamp.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000


def test_a_status_of_several_lines_cannot_smuggle_in_an_assignment(manager):
    receiver, address = manager
    Notifier({"NOTIFY_SOCKET": address}).status("broken\nSTOPPING=1")
    assert receiver.recv(4096) == b"STATUS=broken STOPPING=1"


def test_without_a_manager_nothing_happens():
    notifier = Notifier({})
    notifier.ready("up")
    assert notifier.watchdog_interval_s is None


def test_a_manager_that_is_gone_is_no_error(tmp_path):
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).stopping()


def test_a_manager_that_does_not_read_never_blocks_us(manager):
    _receiver, address = manager
    notifier = Notifier({"NOTIFY_SOCKET": address})
    for _ in range(2000):
        notifier.watchdog()


def test_an_address_that_we_cannot_reach_is_named():
    with pytest.raises(ConfigInvalid, match="NOTIFY_SOCKET=vsock:2:9"):
        Notifier({"NOTIFY_SOCKET": "vsock:2:9"})


@pytest.mark.parametrize(
    ("environ", "interval_s"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_fed_twice_per_timeout(environ, interval_s):
    assert Notifier(environ).watchdog_interval_s == interval_s
