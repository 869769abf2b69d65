"""Connections that look out for a successor of their server while it is silent.

A server that hangs (stopped, or gone without a FIN) answers nothing, and so does one that is busy. What tells them
apart is that somebody was put in the place of the first: the Sentinels name another master, another node of the cluster
says that it is none any more, or the address leads elsewhere. Whoever waits for a reply, or for room to send, asks that
every SILENCE_S, and gives up at once where it is so. Where nobody was put there, it waits out its timeout.

What was given up may have taken effect, as after any other reply that did not come.
"""

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import redis
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection

SILENCE_S = 0.5
"""Of a server of which we wait for something, until we look out for a successor, and from one look to the next."""

LOOK_S = 1.0
"""Longest look: half of it for a connection, half for a reply. Nobody looks where less is left of the time to wait."""

Look = Callable[[Any], bool]
"""Says of a connection whether another server has taken the place of the one that it leads to. Raises nothing."""

_Result = TypeVar("_Result")


class Replaced(OSError):
    """Another server has taken the place of the one that was silent."""


class WatchfulSocket:
    """A socket that leads to a server, for redis-py. Looks out while it waits with *timeout_s*, the one for replies.

    With any other timeout, redis-py waits for what nobody owes us, as do subscribers: there it is a plain socket.
    """

    def __init__(self, connected: Any, timeout_s: float, is_replaced: Callable[[], bool]) -> None:
        assert timeout_s > 0, "a reply takes time"
        self._socket = connected
        self._timeout_s = timeout_s
        self._is_replaced = is_replaced
        self.settimeout(timeout_s)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)

    def settimeout(self, timeout_s: float | None) -> None:
        """See `socket.settimeout`."""
        self._looks_out = timeout_s == self._timeout_s
        self._socket.settimeout(min(SILENCE_S, self._timeout_s) if self._looks_out else timeout_s)

    def recv(self, size: int, flags: int = 0) -> bytes:
        """See `socket.recv`. With *flags*, as hiredis' parser asks whether the server has hung up, nobody waits.

        Raises:
            TimeoutError: nothing came in time.
            Replaced: nothing came, and nothing is to be expected.
        """
        if flags:
            peeked: bytes = self._socket.recv(size, flags)
            return peeked
        received: bytes = self._patiently(self._socket.recv, size, time.monotonic() + self._timeout_s)
        return received

    def recv_into(self, buffer: Any) -> int:
        """See `socket.recv_into`, and `recv`."""
        return int(self._patiently(self._socket.recv_into, buffer, time.monotonic() + self._timeout_s))

    def sendall(self, content: Any) -> None:
        """See `socket.sendall`, and `recv`."""
        deadline = time.monotonic() + self._timeout_s
        rest = memoryview(content)
        while rest:
            n_sent = self._patiently(self._socket.send, rest, deadline)
            assert n_sent > 0, "it has taken something"
            rest = rest[n_sent:]

    def _patiently(self, operation: Callable[[Any], _Result], argument: Any, deadline: float) -> _Result:
        try:
            return operation(argument)
        except TimeoutError:
            if not self._looks_out:
                raise
        try:
            while True:
                left_s = deadline - time.monotonic()
                if left_s > LOOK_S and self._is_replaced():
                    raise Replaced("another server has taken its place")
                self._socket.settimeout(max(0.001, min(SILENCE_S, left_s)))
                try:
                    return operation(argument)
                except TimeoutError:
                    if time.monotonic() >= deadline:
                        raise
        finally:
            self.settimeout(self._timeout_s)


class _Watchful:
    """Holds what the connections below have in common, before the class of redis-py that each is."""

    socket_timeout: Any
    socket_connect_timeout: Any
    _sock: Any

    def __init__(self, *arguments: Any, look: Look, **options: Any) -> None:
        self._look = look
        self._handshake_s: float | None = None
        self.run_id: str | None = None
        """Who the server is; None before it has said so, "" where it does not."""
        self.replication_id = ""
        """Whose history it has, "" where it does not say so."""
        super().__init__(*arguments, **options)

    def connect_within(self, timeout_s: float) -> None:
        """Connect to a server that has to prove that it answers, with so many seconds for each step."""
        assert self._handshake_s is None, "it connects once"
        timeouts = self.socket_timeout, self.socket_connect_timeout
        self._handshake_s = min(timeout_s, self.socket_timeout)
        self.socket_connect_timeout = self._handshake_s
        connection: Any = self
        connection.connect()
        connection.send_command("PING")
        connection.read_response()
        self.socket_timeout, self.socket_connect_timeout = timeouts
        self._handshake_s = None
        self._sock.settimeout(self.socket_timeout)

    def has_successor(self) -> bool:
        """Return true if another server has taken the place of the one that this leads to."""
        return self._look(self)

    def _connect(self) -> WatchfulSocket:
        """See redis-py. Its readers keep the timeout that they find in `socket_timeout` for as long as they live."""
        timeout_s, self.socket_timeout = self.socket_timeout, self._handshake_s or self.socket_timeout
        try:
            connected = super()._connect()  # type: ignore[misc]  # of the class that follows
        finally:
            self.socket_timeout = timeout_s
        watchful = WatchfulSocket(connected, timeout_s, self.has_successor)
        if self._handshake_s:
            watchful.settimeout(self._handshake_s)
        return watchful


class WatchfulConnection(_Watchful, Connection):
    """A connection over TCP."""


class WatchfulSSLConnection(_Watchful, SSLConnection):
    """A connection with TLS."""


class WatchfulUnixConnection(_Watchful, UnixDomainSocketConnection):
    """A connection to a server of this machine."""


def identify(connection: Any) -> None:
    """Log in as redis-py does, and ask *connection* who the server is: `run_id` and `replication_id`."""
    connection.on_connect()
    for section in ("server", "replication"):
        connection.send_command("INFO", section, check_health=False)
    said = b"".join(_said(connection) for _ in range(2))
    connection.run_id, connection.replication_id = _field(said, b"run_id:"), _field(said, b"master_replid:")


def _said(connection: Any) -> bytes:
    try:
        said: bytes = connection.read_response()
    except redis.ResponseError:  # no right to ask
        return b""
    return said


def _field(said: bytes, name: bytes) -> str:
    assert name.endswith(b":"), "so it begins a line's value"
    return said.partition(name)[2].partition(b"\r")[0].decode(errors="replace")


def ask_once(connection: Any, *command: Any) -> Any:
    """The reply of a server to *command*, on a *connection* for that alone; None where it does not come in time."""
    assert command, "there is something to ask"
    connection.socket_timeout = connection.socket_connect_timeout = LOOK_S / 2
    try:
        connection.connect()
        connection.send_command(*command)
        return connection.read_response()
    except redis.RedisError:
        return None
    finally:
        connection.disconnect()


def leads_elsewhere(connect: Callable[[], Any], connection: Any) -> bool:
    """Return true if *connect* leads to another server now than the one of *connection*, and that answers.

    The same server, which answers others and not us, is slow to us: writes may be paused, or it has threads. A replica
    is no successor until it is promoted: the name may have been moved too early, or lead to replicas, too. Nor is who
    has the history of our server, under another `run_id`: a proxy before the same one. A promoted replica has its own.
    Of who does not say who it is, or has not yet, because we are about to connect, we know nothing.
    """
    other = connect()
    assert other is not connection, "the one that is silent keeps what it waits for"
    told = ask_once(other, "INFO", "replication") if _is_found(other) else None
    if told is None or b"role:slave" in told or not (other.run_id and connection.run_id):
        return False
    has_our_history = bool(other.replication_id) and other.replication_id == connection.replication_id
    return other.run_id != connection.run_id and not has_our_history


def _is_found(connection: Any) -> bool:
    """Return true if the host that *connection* is to lead to is an address, or a name that is looked up in time.

    A name server that does not answer must not hold up who waits for a Redis that is slow.
    """
    assert connection.run_id is None, "it is not connected yet"
    host = getattr(connection, "host", "")
    with suppress(OSError):
        return not host or bool(socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST))
    lookup = threading.Thread(target=_look_up, args=(host,), daemon=True)
    lookup.start()
    lookup.join(LOOK_S / 2)
    return not lookup.is_alive()


def _look_up(host: str) -> None:
    with suppress(OSError, UnicodeError):
        socket.getaddrinfo(host, None)
