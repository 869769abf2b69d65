"""A connection to one Redis, and what its failures mean to us. It never retries: its caller knows whether to wait."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import redis

from channelindex.errors import StoreUnavailable, Transient
from channelindex.stores.redis.endpoints import Connect
from channelindex.stores.redis.failures import NOT_NOW_ERRORS, REFUSED_ERRORS, judged, judged_connect
from channelindex.stores.redis.keys import SETTING
from channelindex.stores.redis.scripts import script

ScriptCall = tuple[Sequence[str], Sequence[Any]]
"""(keys, arguments) of one call of a script."""


class Link:
    """A connection that is made when it is first needed and again after it broke. Not safe for threads or over a fork.

    *lost* is what a request means whose reply did not come: `OutcomeUnknown` to one who writes, `StoreUnavailable` to
    one who only reads. Without *reconnects*, a connection that was closed while nobody used it is an error too, once:
    for one whose knowledge of the store is worth nothing after a restart or failover, in which Redis may forget.
    """

    spans_slots = True
    """Whether one script may touch the keys of several slots."""

    def __init__(self, connect: Connect, where: str, lost: type[Transient], *, reconnects: bool = True) -> None:
        self.where = where
        self._connect = connect
        self._lost = lost
        self._reconnects = reconnects
        self._connection: Any = None
        self._session = 0

    @property
    def session(self) -> int:
        """Changes whenever a connection is made or given up."""
        return self._session

    def servers(self) -> Iterator["Link"]:
        """A link to each server that holds a part of the index."""
        yield self

    def server_of(self, key: str) -> "Link":  # noqa: ARG002 there is but one
        """The link to the server that holds *key*."""
        return self

    def execute(self, *command: Any) -> Any:
        """The reply to one command.

        Raises:
            StoreUnavailable: it was not sent, or Redis cannot execute it now.
            OutcomeUnknown: the reply did not come (where *lost* says so).
            AuthenticationFailed: the credentials were refused, or do not suffice.
            IndexCorrupt: a key holds another type than it should.
        """
        (reply,) = self.pipeline([command])
        return reply

    def pipeline(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """The replies to *commands*, sent together. All are executed, also those after one that fails; as `execute`."""
        replies = self.exchange(commands)
        for command, reply in zip(commands, replies, strict=True):
            if isinstance(reply, Exception):
                raise judged(self.where, command, reply) from reply
        return replies

    def run(self, name: str, keys: Sequence[str], *arguments: Any) -> Any:
        """The reply of the script in `<name>.lua`, loading it first if Redis does not know it (yet, or any more)."""
        (reply,) = self.run_all(name, [(keys, arguments)])
        return reply

    def run_all(self, name: str, calls: Sequence[ScriptCall]) -> list[Any]:
        """The replies of a script to several calls of it, sent together; see `pipeline`."""
        loaded = script(name)
        commands = [("EVALSHA", loaded.sha, len(keys), *keys, *arguments) for keys, arguments in calls]
        replies = self.exchange(commands)
        unknown = [index for index, reply in enumerate(replies) if isinstance(reply, redis.exceptions.NoScriptError)]
        if unknown:
            self.execute("SCRIPT", "LOAD", loaded.source)
            again = self.exchange([commands[index] for index in unknown])
            for index, reply in zip(unknown, again, strict=True):
                replies[index] = reply
        for (keys, _), reply in zip(calls, replies, strict=True):
            if isinstance(reply, Exception):
                raise judged(self.where, (f"{name}.lua", *keys), reply) from reply
        return replies

    def listen(self, timeout_s: float) -> list[Any] | None:
        """The next message on a connection that has subscribed, None if none comes within *timeout_s*."""
        try:
            if not self._connection.can_read(timeout_s):
                return None
            message: list[Any] = self._connection.read_response()
        except redis.RedisError as error:
            self.close()
            raise StoreUnavailable(f"{SETTING} {self.where}: {error}") from error
        return message

    def close(self) -> None:
        """Close the connection. May be called twice; the next call opens it again."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            self._session += 1
            connection.disconnect()

    def exchange(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """The reply to each command, an exception where Redis answered with an error."""
        self.send(commands)
        return self.receive(len(commands))

    def send(self, commands: Sequence[Sequence[Any]]) -> None:
        """Send *commands*; who calls this calls `receive` or `close` next."""
        self._open()
        with self._closed_if_broken():
            self._connection.send_packed_command(self._connection.pack_commands(commands))

    def receive(self, n_replies: int) -> list[Any]:
        """The replies to what was sent, as `exchange`."""
        with self._closed_if_broken():
            return [self._read_reply() for _ in range(n_replies)]

    def check(self) -> None:
        """Find out whether the peer has hung up on a connection that owes us nothing, and give it up then.

        Raises:
            StoreUnavailable: it has, and we do not reconnect.
        """
        if self._connection is not None and self._has_hung_up():
            self.close()
            if not self._reconnects:
                raise StoreUnavailable(f"{SETTING} {self.where}: the connection was closed")

    @contextmanager
    def _closed_if_broken(self) -> Iterator[None]:
        """Close the connection on any error: what is left of the replies must not answer the next request."""
        try:
            yield
        except (redis.ConnectionError, redis.TimeoutError, redis.exceptions.InvalidResponse) as error:
            self.close()
            raise self._lost(f"{SETTING} {self.where}: no reply ({error})") from error
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
            connection.connect()
        except redis.RedisError as error:
            raise judged_connect(self.where, error) from error
        self._connection = connection
        self._session += 1

    def _has_hung_up(self) -> bool:
        """Whether there is input on a connection that owes us none: its end, in most cases."""
        try:
            return bool(self._connection.can_read(0))
        except redis.ConnectionError:
            return True
