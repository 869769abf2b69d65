"""One connection to Redis, and what its failures mean to us. It never retries: its caller knows whether to wait."""

import re
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.connection import Connection, parse_url
from redis.retry import Retry

from channelindex.errors import (
    AuthenticationFailed,
    ChannelIndexError,
    ConfigInvalid,
    IndexCorrupt,
    InvariantBroken,
    StoreUnavailable,
    Transient,
)
from channelindex.stores.redis.keys import SETTING
from channelindex.stores.redis.scripts import script

SOCKET_TIMEOUT_S = 5.0
"""For one reply. Longer than Redis' own pauses (fork, eviction), shorter than anybody's patience with a dead peer."""

CONNECT_TIMEOUT_S = 3.0

_NOT_NOW = re.compile(r"\b(OOM|MISCONF|READONLY|NOREPLICAS|LOADING|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|BUSY|UNKILLABLE)\b")
_NOT_NOW_ERRORS = (
    redis.exceptions.BusyLoadingError,
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.MasterDownError,
    redis.exceptions.TryAgainError,
)
_REFUSED_ERRORS = (redis.exceptions.AuthenticationError, redis.exceptions.NoPermissionError)


class Link:
    """A connection that is made when it is first needed and again after it broke. Not safe for threads or over a fork.

    *lost* is what a request means whose reply did not come: `OutcomeUnknown` to one who writes, `StoreUnavailable` to
    one who only reads. Without *reconnects*, a connection that was closed while nobody used it is an error too, once:
    for one whose knowledge of the store is worth nothing after a restart or failover, in which Redis may forget.
    """

    def __init__(self, url: str, lost: type[Transient], *, reconnects: bool = True) -> None:
        self.where = _without_password(url)
        self._lost = lost
        self._reconnects = reconnects
        self._connection: Any = _connection(url)
        self._is_open = False
        self.session = 0
        """Changes whenever a connection is made or given up."""

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
        replies = self._exchange(commands)
        for command, reply in zip(commands, replies, strict=True):
            if isinstance(reply, Exception):
                raise self._judged(command, reply) from reply
        return replies

    def run(self, name: str, keys: Sequence[str], *arguments: Any) -> Any:
        """The reply of the script in `<name>.lua`, loading it first if Redis does not know it (yet, or any more)."""
        loaded = script(name)
        command = ("EVALSHA", loaded.sha, len(keys), *keys, *arguments)
        (reply,) = self._exchange([command])
        if isinstance(reply, redis.exceptions.NoScriptError):
            self.execute("SCRIPT", "LOAD", loaded.source)
            (reply,) = self._exchange([command])
        if isinstance(reply, Exception):
            raise self._judged((f"{name}.lua", *keys), reply) from reply
        return reply

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
        self._is_open = False
        self.session += 1
        self._connection.disconnect()

    def _exchange(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """The reply to each command, an exception where Redis answered with an error."""
        self._open()
        try:
            self._connection.send_packed_command(self._connection.pack_commands(commands))
            return [self._read_reply() for _ in commands]
        except (redis.ConnectionError, redis.TimeoutError, redis.exceptions.InvalidResponse) as error:
            self.close()
            raise self._lost(f"{SETTING} {self.where}: no reply ({error})") from error
        except BaseException:
            self.close()  # what is left of the replies must not answer the next request
            raise

    def _read_reply(self) -> Any:
        try:
            return self._connection.read_response()
        except redis.ResponseError as error:
            return error
        except (*_NOT_NOW_ERRORS, *_REFUSED_ERRORS) as error:
            return error  # replies too, though redis-py makes them connection errors

    def _open(self) -> None:
        """Connect if we are not, or if the peer has hung up since; one attempt."""
        if self._is_open and self._has_hung_up():
            self.close()
            if not self._reconnects:
                raise StoreUnavailable(f"{SETTING} {self.where}: the connection was closed")
        try:
            if not self._is_open:
                self._connection.connect()
                self._is_open = True
                self.session += 1
        except redis.RedisError as error:
            self.close()
            raise self._judged_connect(error) from error

    def _has_hung_up(self) -> bool:
        """Whether there is input on a connection that owes us none: its end, in most cases."""
        try:
            return bool(self._connection.can_read(0))
        except redis.ConnectionError:
            return True

    def _judged_connect(self, error: redis.RedisError) -> ChannelIndexError:
        if isinstance(error, _REFUSED_ERRORS):
            return self._refused(error)
        return StoreUnavailable(f"{SETTING} {self.where} cannot be reached: {error}")

    def _judged(self, command: Sequence[Any], error: Exception) -> ChannelIndexError:
        message = str(error)
        where = f"{SETTING} {self.where}: {_name(command)}"
        if isinstance(error, _REFUSED_ERRORS) or "user executing the script" in message:
            return self._refused(error)
        if isinstance(error, _NOT_NOW_ERRORS) or _NOT_NOW.search(message):
            return StoreUnavailable(f"{where}: {message}")
        if "WRONGTYPE" in message:
            return IndexCorrupt(f"{where}: {message}")
        return InvariantBroken(f"{where}: {message}")

    def _refused(self, error: Exception) -> AuthenticationFailed:
        return AuthenticationFailed(
            f"{SETTING} {self.where} refuses us ({error}): check user and password in the URL, and the user's rights"
        )


def _name(command: Iterable[Any]) -> str:
    """The command and its key, for a message; nothing of what it would have stored."""
    return " ".join(str(part) for part in list(command)[:2])


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"


def _connection(url: str) -> Any:
    try:
        options = parse_url(url)  # type: ignore[no-untyped-call]
        kind = options.pop("connection_class", Connection)
        defaults = {"socket_timeout": SOCKET_TIMEOUT_S, "retry": Retry(NoBackoff(), 0), "protocol": 2}
        if kind is not redis.UnixDomainSocketConnection:
            defaults |= {"socket_connect_timeout": CONNECT_TIMEOUT_S, "socket_keepalive": True}
        return kind(**(defaults | options))
    except (ValueError, TypeError) as error:
        raise ConfigInvalid(f"{SETTING} {_without_password(url)} is not a Redis URL: {error}") from error
