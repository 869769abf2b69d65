"""Connections to the Redis that holds the leases, and its errors in our words."""

from collections.abc import Iterator
from contextlib import contextmanager

import redis

from channelindex.errors import AuthenticationFailed, CoordinationUnavailable
from channelindex.redis_client import RedisClient, open_client
from channelindex.redis_url import without_password

__all__ = ["SETTING", "RedisClient", "connect", "redis_errors"]

SETTING = "coordination.redis"


def connect(url: str, timeout_s: float) -> RedisClient:
    """A client of the Redis at *url*; see `open_client`. No round trip takes longer than *timeout_s*.

    Raises:
        ConfigInvalid: *url* is not one of a Redis.
        AuthenticationFailed, CoordinationUnavailable: a cluster cannot be reached; see `redis_errors`.
    """
    with redis_errors(url):
        return open_client(url, SETTING, timeout_s)


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
        raise AuthenticationFailed(f"{SETTING} {without_password(url)}: {_one_line(error)}") from error
    except (redis.RedisError, redis.exceptions.RedisClusterException, OSError) as error:
        raise CoordinationUnavailable(f"{SETTING} {without_password(url)}: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
