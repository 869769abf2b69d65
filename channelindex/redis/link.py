"""A connection to a Redis, and what its failures mean to us. It never retries: its caller knows whether to wait.

`Link` is what everybody uses: `ServerLink` to one server, `ClusterLink` (`cluster_link.py`) to all of a cluster.

**A server that moved.** A refused connection, a reply that does not come, and errors such as READONLY may all mean that
another server has taken over. After each of them the connection is closed, and the next request asks anew where to go:
the name's address, the Sentinels, the layout of the cluster.
"""

import select
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from types import TracebackType
from typing import Any, Self

import redis

from channelindex.redis.endpoints import Connect
from channelindex.redis.errors import (
    MARK,
    NOT_NOW_ERRORS,
    REFUSED_ERRORS,
    Purpose,
    closes_connection,
    error_in,
    may_have_moved,
    one_line,
    translate_connect_error,
    translate_error,
)

MAX_AGE_S = 10.0
"""Of a connection that may be made anew unasked. An address that was given to another server while the old one lives
keeps its connections: without a limit, who only reads would read the old one for ever."""

SUSPECT_TIMEOUT_S = 1.0
"""For the reply to a PING when we connect again to a server that has just failed. One that hangs accepts connections
all the same; its successor must not wait until it is given up once more."""

SUSPICIOUS_BYTES = 256 << 10
"""A request of so many bytes that cannot be sent to its end twice in a row is taken to be too large: a server that does
not take an argument closes the connection while it is being sent, and its reason is rarely seen."""

ScriptCall = tuple[Sequence[str], Sequence[Any]]
"""(keys, arguments) of one call of a script."""

PackedCall = tuple[str, bytes, int]
"""(key, commands as a server takes them, how many these are): for the server that has the key."""

_RECEIVE_BYTES = 64 << 10
_UNKNOWN_SCRIPT = b"-NOSCRIPT "


def packed(part: bytes) -> bytes:
    """*part* of a command as a server takes it."""
    return b"$%d\r\n%b\r\n" % (len(part), part)


class Link(ABC):
    """Requests to a Redis, to be made from one thread of one process, and never over a fork.

    Every request raises:

    * the purpose's `unavailable`: it was not sent, or Redis cannot execute it now;
    * the purpose's `lost`: the reply did not come;
    * AuthenticationFailed: the credentials were refused, or do not suffice;
    * the purpose's `corrupt`: a key holds another type than it should.
    """

    spans_slots: bool
    """True if one script may touch the keys of several slots."""

    def __init__(self, purpose: Purpose, where: str) -> None:
        self.purpose = purpose
        self.where = where

    def leads_elsewhere(self) -> bool:
        """True if another server has taken the place of the one that we are connected to, though it may answer us."""
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    @abstractmethod
    def session(self) -> int:
        """Changes whenever a connection is made or given up, or other servers are found.

        Raises:
            the purpose's `unavailable`: a server has hung up, and we do not reconnect.
        """

    @abstractmethod
    def servers(self) -> Sequence["ServerLink"]:
        """A link to each server that holds a part of the keys."""

    @abstractmethod
    def server_of(self, key: str) -> "ServerLink":
        """The link to the server that holds *key*."""

    @abstractmethod
    def close(self) -> None:
        """Close all connections. May be called twice; the next request asks where to go, and opens them again."""

    @abstractmethod
    def _exchange(self, commands: Sequence[Sequence[Any]], keys: Sequence[str], *, follows: bool) -> list[Any]:
        """The reply to each command, an exception where Redis answered with an error.

        *keys* say where each goes. Only where *follows*, one goes after a key to the node where its slot is moving.
        """

    @abstractmethod
    def _exchange_packed(self, calls: Sequence[PackedCall]) -> list[bytes]:
        """The replies to each of *calls*, a line for each of its commands."""

    def execute(self, *command: Any) -> Any:
        """The reply to one command, which has its key, if it has one, behind its name."""
        (reply,) = self.pipeline([command])
        return reply

    def pipeline(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """The replies to *commands*, sent together. All are executed, also those after one that fails."""
        keys = [str(command[1]) if len(command) > 1 else "" for command in commands]
        replies = self._exchange(commands, keys, follows=True)
        for command, reply in zip(commands, replies, strict=True):
            if isinstance(reply, Exception):
                raise translate_error(self.purpose, self.where, command, reply) from reply
        return replies

    def count_packed(self, calls: Sequence[PackedCall], name_of: Callable[[int], str]) -> bytes:
        """The replies to commands that answer with a whole number each, a line each: `:7`.

        For thousands of them, which nobody could pack and take apart one by one. All are executed, also those after
        one that fails. `name_of` gives the key of the one with a number, counted over all calls, for an error.
        """
        replies = b"".join(self._exchange_packed(calls))
        if MARK in replies:
            number, error = error_in(replies)
            raise translate_error(self.purpose, self.where, ("command at", name_of(number)), error) from error
        return replies

    def run_packed(self, name: str, key: str, n_keys: int, parts: Sequence[bytes]) -> bytes:
        """The reply of the script `<name>.lua`, which is one line, to keys and arguments that are `packed`.

        For a script that is run often: nothing is made of what it answers. *key* is one of the *n_keys*.
        """
        assert 0 < n_keys <= len(parts), "arguments follow the keys"
        script = self.purpose.scripts[name]
        end = b"".join([packed(b"%d" % n_keys), *parts])
        head = b"*%d\r\n" % (3 + len(parts))
        (line,) = self._exchange_packed([(key, head + packed(b"EVALSHA") + packed(script.sha.encode()) + end, 1)])
        if line.startswith(_UNKNOWN_SCRIPT):
            source = packed(script.source.encode())
            (line,) = self._exchange_packed([(key, head + packed(b"EVAL") + source + end, 1)])
        if line.startswith(MARK):
            _, error = error_in(line)
            raise translate_error(self.purpose, self.where, (f"{name}.lua", key), error) from error
        return line

    def run(self, name: str, keys: Sequence[str], *arguments: Any) -> Any:
        """The reply of the script `<name>.lua`, which runs where the first of *keys* is."""
        (reply,) = self.run_all(name, [(keys, arguments)])
        return reply

    def run_all(self, name: str, calls: Sequence[ScriptCall]) -> list[Any]:
        """The replies of a script to several calls of it, sent together. It is sent whole to whom does not know it."""
        script = self.purpose.scripts[name]
        ends = [(len(keys), *keys, *arguments) for keys, arguments in calls]
        firsts = [keys[0] if keys else "" for keys, _ in calls]
        replies = self._exchange([("EVALSHA", script.sha, *end) for end in ends], firsts, follows=False)
        unknown = [index for index, reply in enumerate(replies) if isinstance(reply, redis.exceptions.NoScriptError)]
        if unknown:
            commands = [("EVAL", script.source, *ends[index]) for index in unknown]
            again = self._exchange(commands, [firsts[index] for index in unknown], follows=False)
            for index, reply in zip(unknown, again, strict=True):
                replies[index] = reply
        for (keys, _), reply in zip(calls, replies, strict=True):
            if isinstance(reply, Exception):
                raise translate_error(self.purpose, self.where, (f"{name}.lua", *keys), reply) from reply
        return replies


class ServerLink(Link):
    """A connection to one server, made when it is first needed and again after it broke.

    Without *reconnects*, a connection that was closed while nobody used it is an error too, once: for one whose
    knowledge of the store is worth nothing after a restart or failover, in which Redis may forget. A server that
    *is_suspect* has to prove within SUSPECT_TIMEOUT_S that it answers. *on_trouble* is called after each failure that
    may mean that the server moved.
    """

    spans_slots = True

    def __init__(
        self,
        connect: Connect,
        purpose: Purpose,
        where: str,
        *,
        reconnects: bool = True,
        is_suspect: bool = False,
        on_trouble: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(purpose, where)
        self._connect = connect
        self._reconnects = reconnects
        self._on_trouble = on_trouble
        self._connection: Any = None
        self._input = select.poll()
        """Tells whether the connection has something to read."""
        self._connected_at = 0.0
        self._is_suspect = is_suspect
        self._session = 0
        self._n_broken_sends = 0
        """Requests in a row that could not be sent to their end."""

    @property
    def session(self) -> int:
        """See `Link.session`; that the server has hung up is found out by `check`."""
        return self._session

    def servers(self) -> Sequence["ServerLink"]:
        """See `Link`: itself."""
        return (self,)

    def server_of(self, key: str) -> "ServerLink":  # noqa: ARG002 there is but one
        """See `Link`: itself."""
        return self

    def fileno(self) -> int | None:
        """The descriptor to wait on for what the server says unasked, None while there is no connection."""
        # redis-py has no public way to wait for a subscription and for something else at the same time.
        connected = self._connection._sock if self._connection else None  # noqa: SLF001
        return connected.fileno() if connected else None

    def listen(self, timeout_s: float) -> list[Any] | None:
        """The next message on a connection that has subscribed, None if none comes within *timeout_s*."""
        if self._connection is None:
            raise self.purpose.unavailable(f"{self.purpose.setting} {self.where}: not subscribed any more")
        try:
            if not self._connection.can_read(timeout_s):
                return None
            message: list[Any] = self._connection.read_response()
        except redis.RedisError as error:
            self._give_up()
            raise self.purpose.unavailable(f"{self.purpose.setting} {self.where}: {one_line(error)}") from error
        return message

    def messages(self) -> list[Any]:
        """All messages of a connection that has subscribed, up to those that the server had when it was asked for them.

        Raises:
            the purpose's `unavailable` or `lost`: there is no such connection any more.
            AuthenticationFailed: the user has no right to PING.
        """
        if self._connection is None:
            raise self.purpose.unavailable(f"{self.purpose.setting} {self.where}: not subscribed any more")
        found: list[Any] = []
        with self._closed_if_broken():
            self._connection.send_command("PING", check_health=False)  # that would take a message for its answer
            while not isinstance(message := self._read_reply(), Exception) and message[0] != b"pong":
                found.append(message)
        if isinstance(message, Exception):
            raise translate_error(self.purpose, self.where, ("PING",), message) from message
        return found

    def close(self) -> None:
        """See `Link.close`."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            self._session += 1
            connection.disconnect()

    def send(self, commands: Sequence[Sequence[Any]]) -> None:
        """Send *commands*; who calls this calls `receive` or `close` next."""
        self._open()
        self._send(self._connection.pack_commands(commands))

    def send_packed(self, calls: Sequence[PackedCall]) -> None:
        """Send *calls*; who calls this calls `receive_lines` or `close` next."""
        self._open()
        self._send([commands for _, commands, _ in calls])

    def _send(self, packed: Sequence[bytes]) -> None:
        try:
            with self._closed_if_broken():
                self._connection.send_packed_command(packed)
        except self.purpose.lost as error:
            self._n_broken_sends += 1
            if self._n_broken_sends > 1 and sum(map(len, packed)) > SUSPICIOUS_BYTES:
                raise self.purpose.too_large(f"{error}, as before: is it too large?") from error
            raise

    def receive(self, n_replies: int) -> list[Any]:
        """The replies to what was sent, an exception where the server answered with an error."""
        assert self._connection is not None, "replies come where requests went"
        with self._closed_if_broken():
            replies = [self._read_reply() for _ in range(n_replies)]
        self._note_errors([reply for reply in replies if isinstance(reply, Exception)])
        return replies

    def receive_lines(self, calls: Sequence[PackedCall]) -> list[bytes]:
        """The replies to *calls*, which were sent packed."""
        assert self._connection is not None, "replies come where requests went"
        with self._closed_if_broken():
            lines = self._read_lines(sum(count for _, _, count in calls))
        self._note_errors([error_in(lines)[1]] if MARK in lines else [])
        if len(calls) == 1:
            return [lines]
        each = iter(lines.splitlines(keepends=True))
        return [b"".join(islice(each, count)) for _, _, count in calls]

    def _read_lines(self, count: int) -> bytes:
        """Read so many replies of a line each. What redis-py has read ahead is nothing: nothing was owed to us."""
        parts: list[bytes] = []
        try:
            while count > 0:
                parts.append(self._connection._sock.recv(_RECEIVE_BYTES))  # noqa: SLF001 see `fileno`
                if not parts[-1]:
                    raise redis.ConnectionError("the connection was closed")
                count -= parts[-1].count(b"\n")
        except TimeoutError as error:
            raise redis.TimeoutError("no reply in time") from error
        except OSError as error:
            raise redis.ConnectionError(str(error)) from error
        if count:
            raise redis.exceptions.InvalidResponse("more replies than commands")
        return b"".join(parts)

    def _note_errors(self, errors: Sequence[Exception]) -> None:
        """Give up the connection, or close it, where one of *errors*, which the server answered with, asks for that."""
        self._n_broken_sends = 0
        if any(map(may_have_moved, errors)):
            self._give_up()
        elif any(map(closes_connection, errors)):
            self.close()

    def leads_elsewhere(self) -> bool:
        """See `Link.leads_elsewhere`. Takes a second at most."""
        return self._connection is not None and self._connection.has_successor()

    def check(self) -> None:
        """Find out whether the server has hung up on a connection that owes us nothing, and give it up then.

        Raises:
            the purpose's `unavailable`: it has, and we do not reconnect.
        """
        if self._connection is None:
            return
        if self._has_hung_up():
            self._give_up()
            if not self._reconnects:
                raise self.purpose.unavailable(f"{self.purpose.setting} {self.where}: the connection was closed")
        elif self._reconnects and time.monotonic() - self._connected_at > MAX_AGE_S:
            self.close()

    def _exchange(
        self,
        commands: Sequence[Sequence[Any]],
        keys: Sequence[str],  # noqa: ARG002 all are here
        *,
        follows: bool,  # noqa: ARG002 nothing moves
    ) -> list[Any]:
        self.send(commands)
        return self.receive(len(commands))

    def _exchange_packed(self, calls: Sequence[PackedCall]) -> list[bytes]:
        self.send_packed(calls)
        return self.receive_lines(calls)

    @contextmanager
    def _closed_if_broken(self) -> Iterator[None]:
        """Close the connection on any error: what is left of the replies must not answer the next request."""
        try:
            yield
        except (redis.ConnectionError, redis.TimeoutError, redis.exceptions.InvalidResponse) as error:
            self._give_up()
            raise self.purpose.lost(f"{self.purpose.setting} {self.where}: no reply ({one_line(error)})") from error
        except BaseException:
            self.close()
            raise

    def _read_reply(self) -> Any:
        try:
            return self._connection.read_response()
        except redis.ResponseError as error:
            return error
        except (*NOT_NOW_ERRORS, *REFUSED_ERRORS) as error:
            return error  # replies too, though redis-py makes them connection errors

    def _open(self) -> None:
        """Connect if we are not, or if the peer has hung up since; one attempt."""
        self.check()
        if self._connection is not None:
            return
        try:
            connection = self._connect()
            if self._is_suspect:
                connection.connect_within(SUSPECT_TIMEOUT_S)
            else:
                connection.connect()
        except redis.RedisError as error:
            self._give_up()
            raise translate_connect_error(self.purpose, self.where, error) from error
        assert self._connection is None, "nobody connected meanwhile"
        self._connection = connection
        self._input = select.poll()
        self._input.register(connection._sock, select.POLLIN)  # noqa: SLF001 see `fileno`
        self._connected_at = time.monotonic()
        self._is_suspect = False
        self._session += 1

    def _give_up(self) -> None:
        """Close the connection to a server that may not be the right one any more."""
        self.close()
        self._is_suspect = True
        self._on_trouble()

    def _has_hung_up(self) -> bool:
        """True if there is input on a connection that owes us none: its end, in most cases.

        Of a TLS connection, input may be what belongs to TLS alone; then redis-py looks into it.
        """
        if not self._input.poll(0):
            return False
        try:
            return bool(self._connection.can_read(0))
        except redis.ConnectionError:
            return True
