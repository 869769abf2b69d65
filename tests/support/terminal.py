"""A command on a terminal of its own, as a person has it before them."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.node import DEADLINE_S

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()=>][0-9A-B]?|\r")


def _without_size(environ: Mapping[str, str]) -> dict[str, str]:
    """What the tests' own terminal says of its size is not true here."""
    return {name: value for name, value in environ.items() if name not in ("COLUMNS", "LINES")}


class Terminal:
    """Runs *line* in a shell; `text` is all that it printed, without colours and movements."""

    def __init__(
        self, line: str, cwd: Path, environ: Mapping[str, str] | None = None, columns: int = 120, lines: int = 40
    ) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.process = subprocess.Popen(
            ["bash", "-c", line],
            cwd=cwd,
            env={**_without_size(os.environ), "TERM": "xterm-256color", **(environ or {})},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 one system call, which takes no lock
        )
        os.close(theirs)
        self.raw = ""

    @property
    def text(self) -> str:
        """What was printed so far, as far as it was read."""
        return _ESCAPES.sub("", self.raw)

    def wait_for(self, pattern: str, after: int = 0) -> str:
        """Read until *pattern* is found in `text` from *after* on; return what it matched."""
        deadline = time.monotonic() + DEADLINE_S
        while not (found := re.search(pattern, self.text[after:])):
            assert time.monotonic() < deadline, f"waited for {pattern!r} in {self.text[-2000:]!r}"
            if not self._read(0.1) and self.process.poll() is not None and not self._read(0):
                raise AssertionError(f"ended with {self.process.returncode} before {pattern!r}: {self.text[-2000:]!r}")
        return found[0]

    def _read(self, timeout_s: float) -> bool:
        """Read what there is; return whether there was anything."""
        if not select.select([self._ours], [], [], timeout_s)[0]:
            return False
        try:
            data = os.read(self._ours, 65536)
        except OSError:  # the last process that had the terminal has ended
            return False
        self.raw += data.decode(errors="replace")
        return bool(data)

    def press(self, keys: str) -> None:
        """Type *keys*; "\\x03" is Ctrl-C."""
        os.write(self._ours, keys.encode())

    def wait(self) -> int:
        """Read until the end; return the exit code."""
        deadline = time.monotonic() + DEADLINE_S
        while self._read(0.1) or self.process.poll() is None:
            assert time.monotonic() < deadline, f"still running: {self.text[-2000:]!r}"
        return self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self._ours)
