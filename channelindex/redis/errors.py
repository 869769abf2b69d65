"""Translates Redis' errors into ours, by the purpose that the Redis serves. Pure."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import redis
from redis._parsers.base import BaseParser

from channelindex.errors import (
    AuthenticationFailed,
    ChannelIndexError,
    ConfigInvalid,
    IndexCorrupt,
    InvariantBroken,
    RequestTooLarge,
    Transient,
)
from channelindex.redis.scripts import Scripts

_NOT_NOW = re.compile(r"\b(OOM|MISCONF|READONLY|NOREPLICAS|LOADING|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|BUSY|UNKILLABLE)\b")
_TOO_LARGE = re.compile(r"invalid (multi)?bulk length|request size|too large", re.IGNORECASE)
"""Redis limits single arguments (proto-max-bulk-len); hosted ones whole requests, each in its own words."""
_ELSEWHERE = re.compile(r"\b(READONLY|NOREPLICAS|LOADING|MASTERDOWN|CLUSTERDOWN)\b")
_REFUSED_IN_SCRIPT = re.compile(r"user executing the script|ACL failure in script")  # before Redis 7, and since
NOT_NOW_ERRORS = (
    redis.exceptions.BusyLoadingError,
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.MasterDownError,
    redis.exceptions.TryAgainError,
    redis.exceptions.AskError,
)
_ELSEWHERE_ERRORS = (
    redis.exceptions.BusyLoadingError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.MasterDownError,
)
REFUSED_ERRORS = (
    redis.exceptions.AuthenticationError,
    redis.exceptions.AuthorizationError,
    redis.exceptions.NoPermissionError,
)


class Purpose(NamedTuple):
    """The purpose of a Redis: the setting that names it, the scripts that run in it, and the errors of its failures.

    `unavailable`: nothing happened. `lost`: a request was sent whose reply did not come, which for one who only reads
    is no different. `too_large`: it was refused for its size. `corrupt`: a key holds another type than it should.
    `broken`: Redis calls the request wrong.
    """

    setting: str
    scripts: Scripts
    unavailable: type[Transient]
    lost: type[Transient]
    too_large: type[ChannelIndexError] = RequestTooLarge
    corrupt: type[ChannelIndexError] = IndexCorrupt
    broken: type[ChannelIndexError] = InvariantBroken


def translate_error(purpose: Purpose, where: str, command: Sequence[Any], error: Exception) -> ChannelIndexError:
    """Our error for the one that the server at *where* answered *command* with."""
    message = str(error)
    what = f"{purpose.setting} {where}: {_name(command)}"
    if isinstance(error, REFUSED_ERRORS) or _REFUSED_IN_SCRIPT.search(message):
        return _refused(purpose, where, error)
    if isinstance(error, redis.exceptions.AskError):
        return purpose.unavailable(f"{what}: its slot is being moved to another node of the cluster")
    if isinstance(error, redis.exceptions.MovedError):
        return ConfigInvalid(f"{what}: this is a node of a cluster, which redis+cluster:// reaches")
    if "cluster support disabled" in message:
        return ConfigInvalid(f"{what}: this is no node of a cluster: redis:// instead of redis+cluster:// reaches it")
    if isinstance(error, NOT_NOW_ERRORS) or _NOT_NOW.search(message):
        return purpose.unavailable(f"{what}: {message}")
    return _kind(purpose, message)(f"{what}: {message}")


def _kind(purpose: Purpose, message: str) -> type[ChannelIndexError]:
    if _TOO_LARGE.search(message):
        return purpose.too_large
    return purpose.corrupt if "WRONGTYPE" in message else purpose.broken


def translate_connect_error(purpose: Purpose, where: str, error: Exception) -> ChannelIndexError:
    """Our error for the one with which a connection could not be made."""
    if isinstance(error, REFUSED_ERRORS):
        return _refused(purpose, where, error)
    return purpose.unavailable(f"{purpose.setting} {where} cannot be reached: {one_line(error).rstrip('.')}")


def may_have_moved(error: Exception) -> bool:
    """True if *error*, a reply, may mean that another server has replaced the one that gave it.

    A master that was demoted answers READONLY for ever, and keeps the connections that it has.
    """
    return isinstance(error, _ELSEWHERE_ERRORS) or bool(_ELSEWHERE.search(str(error)))


def closes_connection(error: Exception) -> bool:
    """True if the server closes the connection after *error*, a reply: it does not read on in what it did not take."""
    return "Protocol error" in str(error)


MARK = b"-"
"""Begins the line of an error. It is in no whole number above 0."""


def error_in(replies: bytes) -> tuple[int, Exception]:
    """Return the number of the first error in *replies*, and it. MARK says that there is one."""
    assert MARK in replies, "there is an error"
    found = (each for each in enumerate(replies.splitlines()) if each[1].startswith(MARK))
    number, line = next(found)
    error: Exception = BaseParser.parse_error(line[1:].decode(errors="replace"))  # type: ignore[no-untyped-call]  # redis-py's
    return number, error


def one_line(error: Exception) -> str:
    """The message of *error* on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _refused(purpose: Purpose, where: str, error: Exception) -> AuthenticationFailed:
    return AuthenticationFailed(
        f"{purpose.setting} {where} refuses us ({one_line(error)}): "
        "check user and password in the URL, and the user's rights"
    )


def _name(command: Iterable[Any]) -> str:
    """The command and its key, for a message; nothing of what it would have stored."""
    return " ".join(str(part) for part in list(command)[:2])
