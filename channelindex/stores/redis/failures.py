"""What the errors that Redis answers with mean to us. Pure."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import redis

from channelindex.errors import (
    AuthenticationFailed,
    ChannelIndexError,
    IndexCorrupt,
    InvariantBroken,
    StoreUnavailable,
)
from channelindex.stores.redis.keys import SETTING

_NOT_NOW = re.compile(r"\b(OOM|MISCONF|READONLY|NOREPLICAS|LOADING|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|BUSY|UNKILLABLE)\b")
NOT_NOW_ERRORS = (
    redis.exceptions.BusyLoadingError,
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.MasterDownError,
    redis.exceptions.TryAgainError,
    redis.exceptions.AskError,
)
REFUSED_ERRORS = (redis.exceptions.AuthenticationError, redis.exceptions.NoPermissionError)


def judged(where: str, command: Sequence[Any], error: Exception) -> ChannelIndexError:
    """Our error for the one that the server at *where* answered *command* with."""
    message = str(error)
    what = f"{SETTING} {where}: {_name(command)}"
    if isinstance(error, REFUSED_ERRORS) or "user executing the script" in message:
        return refused(where, error)
    if isinstance(error, redis.exceptions.AskError):
        return StoreUnavailable(f"{what}: its slot is being moved to another node of the cluster")
    if isinstance(error, NOT_NOW_ERRORS) or _NOT_NOW.search(message):
        return StoreUnavailable(f"{what}: {message}")
    if "WRONGTYPE" in message:
        return IndexCorrupt(f"{what}: {message}")
    return InvariantBroken(f"{what}: {message}")


def judged_connect(where: str, error: redis.RedisError) -> ChannelIndexError:
    """Our error for the one with which a connection could not be made."""
    if isinstance(error, REFUSED_ERRORS):
        return refused(where, error)
    return StoreUnavailable(f"{SETTING} {where} cannot be reached: {error}")


def refused(where: str, error: Exception) -> AuthenticationFailed:
    """Our error where credentials were refused or do not suffice."""
    return AuthenticationFailed(
        f"{SETTING} {where} refuses us ({error}): check user and password in the URL, and the user's rights"
    )


def _name(command: Iterable[Any]) -> str:
    """The command and its key, for a message; nothing of what it would have stored."""
    return " ".join(str(part) for part in list(command)[:2])
