"""Connections to the Redis that holds the leases, and its errors in our words."""

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from channelindex.errors import AuthenticationFailed, ConfigInvalid, CoordinationUnavailable

_SCHEMES = ("redis", "rediss", "unix")


def connect(url: str, timeout_s: float) -> redis.Redis:
    """A client of the Redis at *url*, not connected yet. No round trip takes longer than *timeout_s*.

    It never retries by itself: a retry would outlast the timeout that the lease's time budget counts with.

    Raises:
        ConfigInvalid: *url* is not one of redis://, rediss:// or unix://.
    """
    scheme = urlsplit(url).scheme
    if scheme not in _SCHEMES:
        raise ConfigInvalid(
            f"coordination.redis must be a redis://, rediss:// or unix:// URL, not {scheme}://; it holds the leases"
        )
    options = {} if scheme == "unix" else {"socket_connect_timeout": timeout_s}
    try:
        return redis.Redis.from_url(
            url,
            socket_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            protocol=2,  # one form of replies from every version of the client
            **options,
        )
    except ValueError as error:
        raise ConfigInvalid(f"coordination.redis is not a usable URL: {error}") from error


@contextmanager
def redis_errors(url: str) -> Iterator[None]:
    """Turns what redis-py raises inside the block into errors of ours that name the setting and the address.

    Raises:
        AuthenticationFailed: Redis refused the credentials or the commands.
        CoordinationUnavailable: anything else; what was asked may have happened.
    """
    try:
        yield
    except (
        redis.AuthenticationError,
        redis.exceptions.AuthorizationError,
        redis.exceptions.NoPermissionError,
    ) as error:
        raise AuthenticationFailed(f"coordination.redis {address(url)}: {_one_line(error)}") from error
    except (redis.RedisError, OSError) as error:
        raise CoordinationUnavailable(f"coordination.redis {address(url)}: {_one_line(error)}") from error


def address(url: str) -> str:
    """*url* without user and password, for messages."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
