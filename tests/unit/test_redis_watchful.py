"""A socket that waits for a server, and looks out for another one meanwhile."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from channelindex.redis import watchful
from channelindex.redis.watchful import Replaced, WatchfulSocket

MUCH = bytes(range(256)) * (32 << 10)
"""More than the buffers of a connection hold."""
LONG_S = 3600.0
DEADLINE_S = 120.0


@pytest.fixture(autouse=True)
def haste(monkeypatch) -> None:
    monkeypatch.setattr(watchful, "SILENCE_S", 0.001)
    monkeypatch.setattr(watchful, "LOOK_S", 0.001)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


class Looks:
    """Finds another server at the look with a number; 0 for never."""

    def __init__(self, finds_at: int = 0) -> None:
        self.n = 0
        self.begun = Event()
        self._finds_at = finds_at

    def __call__(self) -> bool:
        self.n += 1
        self.begun.set()
        return self.n == self._finds_at


def test_a_server_that_has_a_successor_is_given_up_while_it_is_waited_for(pair):
    looks = Looks(3)
    with pytest.raises(Replaced):
        WatchfulSocket(pair[0], LONG_S, looks).recv(10)
    assert looks.n == 3


def test_a_server_that_has_a_successor_is_given_up_while_it_takes_no_more(pair):
    looks = Looks(3)
    with pytest.raises(Replaced):
        WatchfulSocket(pair[0], LONG_S, looks).sendall(MUCH)
    assert looks.n == 3


def test_a_server_without_a_successor_is_given_up_when_its_time_is_over(pair):
    looks = Looks()
    with pytest.raises(TimeoutError):
        WatchfulSocket(pair[0], 0.1, looks).recv(10)
    assert looks.n > 0
    with pytest.raises(TimeoutError):
        WatchfulSocket(pair[0], 0.1, looks).sendall(MUCH)


def test_what_comes_late_is_received_and_what_is_taken_late_arrives_whole(pair):
    ours, theirs = pair
    waiting = Looks()
    watching = WatchfulSocket(ours, LONG_S, waiting)

    def answer() -> bytes:
        assert waiting.begun.wait(DEADLINE_S), "the sender waits"
        received = b""
        while len(received) < len(MUCH):
            received += theirs.recv(1 << 20)
        waiting.begun.clear()
        assert waiting.begun.wait(DEADLINE_S), "who has sent all waits for the answer"
        theirs.sendall(b"answer")
        return received

    with ThreadPoolExecutor(1) as pool:
        answered = pool.submit(answer)
        watching.sendall(MUCH)
        assert watching.recv_into(buffer := bytearray(10)) == len(b"answer")
        assert bytes(buffer).startswith(b"answer")
        assert answered.result() == MUCH


def test_nobody_looks_out_who_waits_for_what_is_not_owed(pair):
    looks = Looks(1)
    watching = WatchfulSocket(pair[0], LONG_S, looks)
    watching.settimeout(0.01)
    with pytest.raises(TimeoutError):
        watching.recv(10)
    watching.settimeout(0.0)
    with pytest.raises(BlockingIOError):
        watching.recv(10)
    assert looks.n == 0
    watching.settimeout(LONG_S)
    with pytest.raises(Replaced):
        watching.recv(10)


def test_no_look_begins_that_would_last_longer_than_the_time_to_wait(pair, monkeypatch):
    monkeypatch.setattr(watchful, "LOOK_S", LONG_S)
    looks = Looks(1)
    with pytest.raises(TimeoutError):
        WatchfulSocket(pair[0], 0.01, looks).recv(10)
    assert looks.n == 0
