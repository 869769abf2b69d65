"""Runs a node in a process of its own, for the demo and for play: it ends with the program that started it."""

import subprocess
import sys
from pathlib import Path

from channelindex.errors import InvariantBroken
from devbucket.embedded_redis import end_with_parent

STOP_TIMEOUT_S = 60.0
"""Time for a node to drain. Its own limit, `workers.drain_timeout_s`, is shorter."""


class LocalNode:
    """Runs `channelindex run`, or `serve`, on the configuration *config*, with its log in the file *log*."""

    def __init__(self, name: str, config: Path, log: Path, *settings: str, command: str = "run") -> None:
        """*settings* are of the form `section.key=value`."""
        assert all("=" in setting for setting in settings)
        self.name = name
        self._log = log
        given = [argument for setting in (f"node.name={name}", *settings) for argument in ("--set", setting)]
        self._command = [sys.executable, "-m", "channelindex", command, "--config", str(config), *given]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the node, for the first time or again."""
        assert self._process is None or self._process.poll() is not None, f"{self.name} still runs"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C in the terminal is ours to handle
                preexec_fn=end_with_parent,  # noqa: PLW1509 one system call, which takes no lock
            )

    @property
    def pid(self) -> int:
        """The process id of its supervisor."""
        assert self._process, "the node was started"
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """The code that it ended with; None while it runs."""
        return self._process.poll() if self._process else None

    def check(self) -> None:
        """Raise InvariantBroken with the node's last words if it has ended."""
        if self.exit_code is not None:
            raise InvariantBroken(f"{self.name} ended with code {self.exit_code}: {self.last_log_line()}")

    def last_log_line(self) -> str:
        """The last line of its log."""
        text = self._log.read_text(encoding="utf-8", errors="replace") if self._log.exists() else ""
        return (text.splitlines() or ["the log is empty"])[-1]

    def terminate(self) -> None:
        """Have it drain. `wait` waits for its end."""
        if self._process:
            self._process.terminate()

    def wait(self) -> int:
        """Wait for its end; return its exit code.

        Raises:
            TimeoutExpired: it did not end within STOP_TIMEOUT_S.
        """
        assert self._process, "the node was started"
        return self._process.wait(STOP_TIMEOUT_S)

    def close(self) -> None:
        """Kill it if it still runs. May be called twice."""
        if self._process and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
