"""Connections to the Redis that holds the leases."""

from importlib.resources import files

from channelindex.errors import CoordinationUnavailable
from channelindex.redis.errors import Purpose
from channelindex.redis.link import Link
from channelindex.redis.opening import open_redis
from channelindex.redis.scripts import Scripts

SETTING = "coordination.redis"

_LEASES = Purpose(
    SETTING,
    Scripts(files("coordinator").joinpath("lua")),
    unavailable=CoordinationUnavailable,
    lost=CoordinationUnavailable,
    corrupt=CoordinationUnavailable,
    broken=CoordinationUnavailable,
)
"""Nothing of it is needed to keep the index right, so whatever fails is worth another attempt."""


def connect(url: str, timeout_s: float) -> Link:
    """A link to the Redis at *url*, which connects when it is first used. No reply may take longer than *timeout_s*.

    Its requests raise AuthenticationFailed, or CoordinationUnavailable: what was asked may have happened.

    Raises:
        ConfigInvalid: *url* is not one of a Redis.
    """
    return open_redis(url, _LEASES, timeout_s=timeout_s)
