"""Programs of ours for tests, forked by a process that has imported them: that takes longer than most of their work.

What is forked is what `python -m MODULE` would be: its arguments, environment, working directory, standard files,
session, signals and exit code are its own. What differs is told apart by `must_be_real`, and started in earnest.
"""

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[2]
_OF_THE_INTERPRETER = ("PYTHON", "LC_", "LANG", "LD_", "MALLOC_", "GLIBC_", "COVERAGE_", "PATH")
"""Variables that the interpreter, or what it loads, reads once and for all."""
_PID_BYTES = 4

_PYTHON = sys.executable

MAY_FORK = "COVERAGE_PROCESS_CONFIG" not in os.environ and "REAL_STARTS" not in os.environ
forks = MAY_FORK
"""Whether programs are forked now: not where coverage measures them, nor in tests that are marked `real_start`."""


class Forked:
    """A forked program, with what tests use of `subprocess.Popen`."""

    def __init__(self, args: Sequence[str], pid: int, reports: int) -> None:
        self.args = args
        self.pid = pid
        self.returncode: int | None = None
        self._reports = reports

    def poll(self) -> int | None:
        """The exit code; None while the program runs."""
        return self.returncode if self.returncode is not None or not self._has_ended(0) else self._reap()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end, up to *timeout* seconds; the exit code. Raises `subprocess.TimeoutExpired`."""
        if self.returncode is not None:
            return self.returncode
        if not self._has_ended(timeout):
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return self._reap()

    def send_signal(self, signum: int) -> None:
        """Send *signum* to the program if it still runs."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signum)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _has_ended(self, timeout: float | None) -> bool:
        return bool(select.select([self._reports], [], [], timeout)[0])

    def _reap(self) -> int:
        told = os.read(self._reports, 64)
        assert told, "the process that forks programs has ended"
        os.close(self._reports)
        self.returncode = int(told)
        return self.returncode


Started = Forked | subprocess.Popen[bytes]


def start(
    *arguments: object,
    output: IO[bytes],
    errors: IO[bytes] | None = None,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    program: Sequence[str] | None = None,
    own_session: bool = True,
) -> Started:
    """Start *program*, by default `channelindex`, with *arguments*; its *errors* go to *output* too if not elsewhere.

    Nothing is there to be read from its standard input. Another program, or one by another Python, is always started.
    """
    environment = dict(os.environ if environ is None else environ)
    program = program or (sys.executable, "-m", "channelindex")
    command = [*program, *map(str, arguments)]
    folder = str(cwd or Path.cwd())
    if not forks or tuple(program) != (_PYTHON, "-m", "channelindex") or must_be_real(environment):
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output.fileno(),
            stderr=(errors or output).fileno(),
            env=environment,
            cwd=folder,
            start_new_session=own_session,
        )
    request = {"command": command, "environ": environment, "cwd": folder, "own_session": own_session}
    return _server().start(request, output.fileno(), (errors or output).fileno())


def must_be_real(environment: Mapping[str, str]) -> bool:
    """Whether *environment* asks something of the interpreter that the process that forks was not asked."""
    return _of_the_interpreter(environment) != _server().environment


def _of_the_interpreter(environment: Mapping[str, str]) -> dict[str, str]:
    names = (name for name in environment if name.startswith(_OF_THE_INTERPRETER) and name != "PYTHONUNBUFFERED")
    return {name: environment[name] for name in names}


class _Server:
    """The process that forks; it ends with the one that made it."""

    def __init__(self) -> None:
        self.environment = _of_the_interpreter(os.environ)
        self._owner = os.getpid()
        self._link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.forking"], cwd=ROOT, stdin=theirs.fileno()
            )

    def start(self, request: Mapping[str, Any], stdout: int, stderr: int) -> Forked:
        reports, theirs = os.pipe()
        nothing = os.open(os.devnull, os.O_RDONLY)
        try:
            socket.send_fds(self._link, [json.dumps(request).encode()], [nothing, stdout, stderr, theirs])
        finally:
            os.close(theirs)
            os.close(nothing)
        pid = os.read(reports, _PID_BYTES)
        assert len(pid) == _PID_BYTES, "the process that forks programs has ended"
        return Forked(request["command"], int.from_bytes(pid), reports)

    def close(self) -> None:
        """End the process, which has no more to do once nobody can ask."""
        if self._owner == os.getpid():
            self._link.close()
            self._process.wait()


@cache
def _server() -> _Server:
    server = _Server()
    atexit.register(server.close)
    return server
