"""Clients of whatever Redis a URL names, for those who use redis-py's own commands."""

from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.retry import Retry
from redis.sentinel import Sentinel

from channelindex.errors import ConfigInvalid
from channelindex.redis_url import RedisAddress, parse_redis_url, without_password

RedisClient = redis.Redis
"""What the functions here return. A `RedisCluster` is one in all that we use of it, though not by inheritance."""


def open_client(url: str, setting: str, timeout_s: float) -> RedisClient:
    """A client of the Redis at *url*. No round trip takes longer than *timeout_s*; it never retries by itself.

    Nothing is connected yet, but for a cluster, whose layout is asked for: at most *timeout_s* per node named.

    Raises:
        ConfigInvalid: *url*, the value of *setting*, is not usable.
        redis.RedisError: a cluster could not be reached.
    """
    try:
        address = parse_redis_url(url)
        if address.is_cluster:
            cluster: RedisClient = _cluster(address, timeout_s)
            return cluster
        if address.is_sentinel:
            return _master(address, timeout_s)
        return redis.Redis.from_url(url, **_options(address.scheme == "unix", timeout_s))
    except (ValueError, TypeError) as error:
        raise ConfigInvalid(f"{setting} {without_password(url)}: {error}") from error


def _options(unix: bool, timeout_s: float) -> dict[str, Any]:
    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 0),  # a retry would outlast the time that a caller counts with
        "protocol": 2,  # one form of replies from every version of the client
        "driver_info": None,  # no CLIENT SETINFO, which servers before 7.2 do not know and ACL rules cannot name there
    }
    return options if unix else options | {"socket_connect_timeout": timeout_s}


def open_sentinel(address: RedisAddress, timeout_s: float) -> Sentinel:
    """What asks the Sentinels of *address* for the master. Nothing is connected yet.

    Raises:
        TypeError, ValueError: an option of the URL is not usable.
    """
    ours = {"username": "sentinel_username", "password": "sentinel_password"}
    credentials = {name: address.options[key] for name, key in ours.items() if key in address.options}
    rest = {key: value for key, value in address.options.items() if key not in ours.values()}
    options = {**rest, **credentials, **_options(False, timeout_s), "ssl": address.tls}
    return Sentinel(address.nodes, sentinel_kwargs=options)  # type: ignore[no-untyped-call]


def _master(address: RedisAddress, timeout_s: float) -> RedisClient:
    """A client that asks the Sentinels for the master at each new connection."""
    rest = {key: value for key, value in address.options.items() if not key.startswith("sentinel_")}
    options = {**rest, **_options(False, timeout_s), "ssl": address.tls}
    credentials = {"username": address.username, "password": address.password, "db": address.db}
    sentinel = open_sentinel(address, timeout_s)
    client: RedisClient = sentinel.master_for(address.service, **options, **credentials)  # type: ignore[no-untyped-call]
    return client


def _cluster(address: RedisAddress, timeout_s: float) -> Any:
    return RedisCluster(
        startup_nodes=[ClusterNode(host, port) for host, port in address.nodes],  # type: ignore[no-untyped-call]
        username=address.username,
        password=address.password,
        ssl=address.tls,
        **{**address.options, **_options(False, timeout_s)},
    )
