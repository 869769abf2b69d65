import errno
import gc
import logging
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest

from channelindex import exits, logs
from channelindex.errors import IndexMismatch
from tests.support.leaks import no_leaks, open_fds
from tests.support.processes import DEADLINE_S, end_of
from workers.node.child import spawn
from workers.signals import SignalQueue

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    with no_leaks():
        yield


class Pipe:
    """A pipe whose writing end a child may keep."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()

    def fileno(self) -> int:
        return self.writer

    def tell(self, text: str) -> None:
        os.write(self.writer, text.encode())

    def heard(self) -> str:
        assert select.select([self.reader], [], [], DEADLINE_S)[0], "the child says nothing"
        return os.read(self.reader, 65536).decode()


@pytest.fixture
def pipe(_clean) -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    os.close(pipe.reader)
    os.close(pipe.writer)


def test_the_exit_code_is_what_main_returns():
    child = spawn("worker", lambda _stop: 42)
    assert end_of(child) == 42
    assert child.reap() == child.exit_code == 42
    assert child.fileno() == -1


def test_a_running_child_is_not_reaped():
    child = spawn("worker", lambda stop: 0 if stop.wait(DEADLINE_S) else 1)
    assert child.reap() is None
    child.signal(signal.SIGTERM)
    assert end_of(child) == 0


def test_a_killed_child_ends_with_minus_the_signal():
    child = spawn("worker", lambda stop: int(stop.wait(DEADLINE_S)))
    child.signal(signal.SIGKILL)
    assert end_of(child) == -signal.SIGKILL
    child.signal(signal.SIGTERM)


@contextmanager
def logging_to_stdout() -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    logs.configure(stream=sys.stdout)
    yield
    root.handlers[:], root.level = before


def test_an_error_is_logged_in_one_line_and_becomes_its_exit_code(capfd):
    def main(_stop):
        raise IndexMismatch("the index has 64 partitions, index.partitions says 32")

    with logging_to_stdout():
        assert end_of(spawn("feed_worker", main, [sys.stdout])) == exits.MISMATCH
    (line,) = capfd.readouterr().out.splitlines()
    assert "event=child.failed" in line
    assert "role=feed_worker" in line
    assert "index.partitions says 32" in line


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, SystemExit])
def test_a_crash_is_logged_with_its_traceback(capfd, error):
    def main(_stop):
        raise error

    with logging_to_stdout():
        assert end_of(spawn("feed_worker", main, [sys.stdout])) == exits.INTERNAL
    out = capfd.readouterr().out
    assert "event=child.crashed" in out
    assert f"{error.__name__}" in out


def test_buffered_output_appears_once():
    script = (
        "from workers.node.child import spawn; from tests.support.processes import end_of\n"
        "print('before the fork')\n"
        "end_of(spawn('worker', lambda stop: print('from the child') or 0))\n"
        "print('after the fork')\n"
    )
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT, env=environ
    )
    assert done.stdout.splitlines() == ["before the fork", "from the child", "after the fork"]


def test_sigterm_right_after_the_fork_is_neither_lost_nor_deadly():
    for _ in range(20):
        child = spawn("worker", lambda stop: 7 if stop.wait(DEADLINE_S) else 1)
        child.signal(signal.SIGTERM)
        assert end_of(child) == 7


def test_sigterm_wakes_a_child_that_polls(pipe):
    def main(stop):
        assert not stop.is_set()
        pipe.tell("polling")
        readable, _, _ = select.select([stop], [], [], DEADLINE_S)
        assert readable
        assert stop.is_set()
        assert stop.is_set()
        return int(bool(select.select([stop], [], [], 0)[0]))

    child = spawn("worker", main, [pipe])
    assert pipe.heard() == "polling"
    child.signal(signal.SIGTERM)
    assert end_of(child) == 0


def test_only_descriptors_that_are_kept_stay_open(pipe):
    here, there = socket.socketpair()
    with here, there:

        def main(stop):
            stop_pipe = {stop.fileno(), stop.fileno() + 1}
            pipe.tell(" ".join(str(fd) for fd in open_fds() if fd not in stop_pipe))
            return 0

        assert end_of(spawn("worker", main, [pipe, here])) == 0
        assert {int(fd) for fd in pipe.heard().split()} == {0, 1, 2, pipe.writer, here.fileno()}
        there.sendall(b"still connected")
        assert here.recv(100) == b"still connected"


def test_signals_of_the_parent_do_not_reach_into_the_child(pipe):
    queue = SignalQueue(signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    try:

        def main(stop):
            assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
            assert signal.getsignal(signal.SIGINT) is signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            pipe.tell(f"{blocked} {stop.is_set()}")
            return 0

        assert end_of(spawn("worker", main, [pipe])) == 0
        assert pipe.heard() == "set() True"
        assert queue.take() == []
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()
    finally:
        queue.close()


def test_children_die_with_their_parent(pipe):
    def child_main(stop):
        pipe.tell(str(os.getpid()))
        stop.wait(DEADLINE_S)
        return 0

    def parent_main(stop):
        spawn("grandchild", child_main, [pipe])
        stop.wait(DEADLINE_S)
        return 0

    parent = spawn("parent", parent_main, [pipe])
    orphan = os.pidfd_open(int(pipe.heard()))
    parent.signal(signal.SIGKILL)
    assert end_of(parent) == -signal.SIGKILL
    assert select.select([orphan], [], [], DEADLINE_S)[0]
    os.close(orphan)


def test_a_parent_that_was_gone_before_the_child_asked_is_noticed(monkeypatch):
    monkeypatch.setattr("os.getppid", lambda: 1)
    assert end_of(spawn("worker", lambda _stop: 0)) == exits.INTERRUPTED


def test_two_children_draw_different_random_numbers(pipe):
    def main(_stop):
        pipe.tell(f"{random.getrandbits(64)} ")
        return 0

    for _ in range(2):
        assert end_of(spawn("worker", main, [pipe])) == 0
    assert len(set(pipe.heard().split())) == 2


def test_the_role_is_the_name_of_the_process(pipe):
    def main(_stop):
        pipe.tell(Path("/proc/self/comm").read_text())
        return 0

    assert end_of(spawn("batch_writer-12345", main, [pipe])) == 0
    assert pipe.heard() == "batch_writer-12\n"


def test_without_a_descriptor_for_it_no_child_is_left(monkeypatch):
    def refuse(pid):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("os.pidfd_open", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        spawn("worker", lambda stop: int(stop.wait(1000)))


class Loud:
    """Garbage that only the cycle collector finds, and that says so."""

    heard: ClassVar[list[int]] = []

    def __init__(self) -> None:
        self.myself = self

    def __del__(self) -> None:
        self.heard.append(os.getpid())


def test_garbage_of_the_parent_is_not_destroyed_in_the_child():
    gc.disable()
    try:
        Loud()

        def main(_stop):
            gc.collect()
            return len(Loud.heard)

        assert end_of(spawn("worker", main)) == 0
    finally:
        gc.enable()
    gc.collect()
    assert Loud.heard == [os.getpid()]


def test_time_spent_waiting_ends_with_the_timeout():
    def main(stop):
        started = time.monotonic()
        return 0 if not stop.wait(0.01) and time.monotonic() - started >= 0.01 else 1

    assert end_of(spawn("worker", main)) == 0
