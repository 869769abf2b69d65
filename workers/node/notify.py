"""Reports to the service manager: readiness, status, liveness (sd_notify). Silent where there is no manager.

The messages and the variables are those of sd_notify(3) and sd_watchdog_enabled(3).
"""

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress

from channelindex.errors import ConfigInvalid


class Notifier:
    """Sends datagrams to the socket that the service manager named. Never blocks; a lost message is not an error."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Take NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID from *environ*.

        Raises:
            ConfigInvalid: NOTIFY_SOCKET is neither a path nor an abstract name.
        """
        address = environ.get("NOTIFY_SOCKET", "")
        if address and address[0] not in "/@":
            raise ConfigInvalid(f"NOTIFY_SOCKET={address}: expected a path, or @ and an abstract name")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self.watchdog_interval_s = _watchdog_interval_s(environ)
        """Interval of calls of `watchdog`: half of the time after which the manager kills us. None: no watchdog."""

    def ready(self, status: str) -> None:
        """Report that start-up, or a reload, is done."""
        self._send("READY=1", f"STATUS={_one_line(status)}")

    def status(self, status: str) -> None:
        """Report one line for `systemctl status`."""
        self._send(f"STATUS={_one_line(status)}")

    def watchdog(self) -> None:
        """Report that the main loop is alive."""
        self._send("WATCHDOG=1")

    def reloading(self) -> None:
        """Report that the configuration is being read anew; `ready` ends it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Report that the shutdown has begun."""
        self._send("STOPPING=1")

    def extend_timeout(self, by_s: float) -> None:
        """Ask the manager to give the start, reload or stop that is under way at least *by_s* seconds from now."""
        assert by_s > 0
        self._send(f"EXTEND_TIMEOUT_USEC={round(by_s * 1_000_000)}")

    def _send(self, *assignments: str) -> None:
        assert all("\n" not in assignment for assignment in assignments), "a line each"
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, suppress(OSError):
            sender.setblocking(False)
            sender.sendto("\n".join(assignments).encode(), self._address)


def _one_line(text: str) -> str:
    """Return *text* without line ends: the next line would be another assignment."""
    return " ".join(text.splitlines())


def _watchdog_interval_s(environ: Mapping[str, str]) -> float | None:
    watched = environ.get("WATCHDOG_PID", "")
    if watched and watched != str(os.getpid()):
        return None
    timeout = environ.get("WATCHDOG_USEC", "")
    return int(timeout) / 2_000_000 if timeout.isdecimal() and int(timeout) else None
