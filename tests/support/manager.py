"""A service manager for tests: starts an installed unit as systemd would, and hears what the service tells it.

It takes from the unit what concerns the protocol (ExecStart, ExecReload, Environment, LoadCredential, WatchdogSec,
RuntimeDirectory) and leaves out the sandbox, which needs a real systemd.
"""

import os
import shlex
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple, Self

DEADLINE_S = 120.0
LOOK_S = 0.5
"""A service that has ended sends no message: look for that now and then."""


class Message(NamedTuple):
    """One datagram of the service: its assignments, and when it came (monotonic)."""

    at: float
    told: Mapping[str, str]


class Service:
    """The unit at *unit* for *instance*, installed below *root*. Its output goes to *log*."""

    def __init__(self, unit: Path, instance: str, root: Path, log: Path) -> None:
        self._root = root
        self._instance = instance
        self._runtime = root / "run"
        self._settings = _parse(unit)
        self._log = log
        self.messages: list[Message] = []
        self._heard = threading.Condition()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0channelindex-manager-{os.getpid()}-{id(self)}")
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def start(self) -> Self:
        """Start it. `wait_for` says when it is ready."""
        credentials = self._root / "credentials"
        credentials.mkdir(exist_ok=True)
        name, _, path = self._value("LoadCredential").partition(":")
        (credentials / name).write_bytes(Path(self._staged(path)).read_bytes())
        (self._runtime / self._expand(self._value("RuntimeDirectory"))).mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self.process = self._popen(self._runnable(self._value("ExecStart")), log)
        return self

    def _popen(self, command: Sequence[str], log: IO[bytes]) -> "subprocess.Popen[bytes]":
        status = os.fstat(log.fileno())
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd="/",
            start_new_session=True,
            env={
                "NOTIFY_SOCKET": self._socket.getsockname().decode().replace("\0", "@"),
                "WATCHDOG_USEC": str(int(self._value("WatchdogSec")) * 1_000_000),
                "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}",
                **self._environment(),
            },
        )

    def reload(self) -> None:
        """What `systemctl reload` does.

        Raises:
            CalledProcessError: a command of the unit failed, and with it the reload.
        """
        for line in self._settings["ExecReload"]:
            command = self._runnable(line.replace("$MAINPID", str(self.process.pid)))
            subprocess.run(command, env=self._environment(), check=True, capture_output=True, text=True)

    def stop(self) -> int:
        """What `systemctl stop` does, within TimeoutStopSec; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(int(self._value("TimeoutStopSec")))

    def mark(self) -> Message:
        """What the service sent before now has come before this message."""
        mark = f"MARK={time.monotonic_ns()}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
            ours.sendto(mark.encode(), self._socket.getsockname())
        return self.wait_for(*mark.split("="))

    def wait_for(self, name: str, value: str, *, after: float = 0.0) -> Message:
        """The first message after *after* that sets *name* to *value*."""
        return self.wait_until(lambda told: told.get(name) == value, f"{name}={value}", after=after)

    def wait_until(self, holds: Callable[[Mapping[str, str]], bool], what: str, *, after: float = 0.0) -> Message:
        """The first message after *after* for which *holds*."""
        deadline = time.monotonic() + DEADLINE_S
        with self._heard:
            while True:
                for message in self.messages:
                    if message.at > after and holds(message.told):
                        return message
                assert self.process.poll() is None, f"ended with {self.process.returncode}: {self._log.read_text()}"
                assert time.monotonic() < deadline, f"no {what} in {DEADLINE_S:.0f} s"
                self._heard.wait(LOOK_S)

    def _listen(self) -> None:
        while datagram := self._socket.recv(65536):
            told = dict(line.split("=", 1) for line in datagram.decode().splitlines())
            with self._heard:
                self.messages.append(Message(time.monotonic(), told))
                self._heard.notify_all()

    def _value(self, name: str) -> str:
        return self._settings[name][-1]

    def _environment(self) -> dict[str, str]:
        """What every command of the unit is given."""
        own = dict(self._expand(line).split("=", 1) for line in self._settings["Environment"])
        return {"PATH": "/usr/bin:/bin", **own}

    def _runnable(self, line: str) -> list[str]:
        """The words of the command *line*; the interpreter before a script that is staged, whose first line is not."""
        command = [self._staged(word) for word in shlex.split(line)]
        if not command[0].startswith("/"):
            return command
        interpreter = Path(command[0]).read_text(encoding="utf-8").partition("\n")[0].removeprefix("#!")
        return [self._staged(interpreter), *command]

    def _staged(self, word: str) -> str:
        """*word* with its specifiers; a path of the installation as it is staged."""
        expanded = self._expand(word)
        return f"{self._root}{expanded}" if expanded.startswith(("/opt/", "/etc/")) else expanded

    def _expand(self, text: str) -> str:
        values = {"%i": self._instance, "%d": str(self._root / "credentials"), "%t": str(self._runtime)}
        for specifier, value in values.items():
            text = text.replace(specifier, value)
        return text

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self._socket.getsockname())
        self._listener.join()
        self._socket.close()
        if error is not None:
            print(f"--- log of the service, last lines\n{self._log.read_text()[-6000:]}")


def _parse(unit: Path) -> dict[str, list[str]]:
    settings: dict[str, list[str]] = {}
    for line in unit.read_text(encoding="utf-8").splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            settings.setdefault(name, []).append(value)
    return settings
