"""The HTTP endpoint of a node and clients that mean no good: none keeps another out for long."""

import socket
import threading
from collections.abc import Iterator

import pytest

from channelindex.settings import MetricsSettings
from tests.support.node import until
from workers.telemetry import monitor
from workers.telemetry.board import Board
from workers.telemetry.monitor import MAX_REQUESTS, Monitor


class Stop:
    """A stop flag that a test sets."""

    def __init__(self) -> None:
        self._ours, self._its = socket.socketpair()
        self._is_set = False

    def set(self) -> None:
        self._is_set = True
        self._ours.send(b"!")

    def is_set(self) -> bool:
        return self._is_set

    def fileno(self) -> int:
        return self._its.fileno()

    def close(self) -> None:
        self._ours.close()
        self._its.close()


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Where a monitor answers that leaves a request after a third of a second."""
    monkeypatch.setattr(monitor, "REQUEST_TIMEOUT_S", 0.3)
    monkeypatch.setattr(monitor._HttpHandler, "timeout", 0.3)
    monkeypatch.setattr(monitor, "BEAT_S", 0.05)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number = int(probe.getsockname()[1])
    board, stop = Board(1), Stop()
    board.supervisor.beat()
    info = {"node": "n1", "version": "1", "index": "i"}
    served = Monitor(("127.0.0.1", number), board, board.monitor, info, MetricsSettings())
    thread = threading.Thread(target=served.run, args=(stop,))
    thread.start()
    try:
        until(lambda: answered(number), "the monitor")
        yield number
    finally:
        stop.set()
        thread.join()
        until(lambda: not any("process_request" in each.name for each in threading.enumerate()), "the last request")
        stop.close()


def answered(port: int, request: bytes = b"GET /healthz HTTP/1.0\r\n\r\n") -> bytes:
    """The first line of the answer; empty where there is none."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(request)
            return client.makefile("rb").readline()
    except OSError:
        return b""


def test_a_client_that_sends_byte_by_byte_is_left_when_its_time_is_over(port: int) -> None:
    drips = [socket.create_connection(("127.0.0.1", port)) for _ in range(MAX_REQUESTS)]
    left: set[socket.socket] = set()

    def all_left() -> bool:
        for drip in drips:
            try:
                drip.sendall(b"G")
            except OSError:
                left.add(drip)
        return len(left) == len(drips)

    until(all_left, "all of them to be left, though none was ever silent")
    assert b"200" in answered(port)
    for drip in drips:
        drip.close()


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.0\r\n\r\n", b"414"),
        (b"GET / HTTP/1.0\r\n" + b"X: y\r\n" * 1000 + b"\r\n", b"431"),
        (b"GET / HTTP/1.0\r\nX: " + b"y" * 100_000 + b"\r\n\r\n", b"431"),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b""),
        (b"POST /metrics HTTP/1.0\r\nContent-Length: 99999999999\r\n\r\n", b"501"),
        (b"GET /../../etc/passwd HTTP/1.0\r\n\r\n", b"404"),
        (b"GET /metrics?a=%0d%0aSet-Cookie:x HTTP/1.0\r\n\r\n", b"200"),
    ],
    ids=["long path", "many headers", "long header", "TLS", "POST", "path above", "line end"],
)
def test_what_is_no_request_of_ours_is_refused(port: int, request_bytes: bytes, status: bytes) -> None:
    assert status in answered(port, request_bytes)
    assert b"200" in answered(port)


def test_a_client_that_reads_nothing_is_left_too(port: int) -> None:
    deaf = []
    for _ in range(MAX_REQUESTS):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        client.connect(("127.0.0.1", port))
        client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        deaf.append(client)
    until(lambda: b"200" in answered(port), "an answer for another client")
    for client in deaf:
        client.close()
