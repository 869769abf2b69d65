"""Makes the options of redis-py for connections to the servers that a URL names."""

from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from redis.backoff import NoBackoff
from redis.connection import AbstractConnection, Connection, parse_url
from redis.retry import Retry
from redis.sentinel import Sentinel

from channelindex.errors import ConfigInvalid
from channelindex.redis_url import RedisAddress, parse_redis_url, without_password

SOCKET_TIMEOUT_S = 5.0
"""For one reply. Longer than Redis' own pauses (fork, eviction), shorter than anybody's patience with a dead peer."""

CONNECT_TIMEOUT_S = 3.0

_FIXED = {
    "retry": Retry(NoBackoff(), 0),  # a retry would outlast the time that a caller counts with
    "protocol": 2,  # one form of replies from every version of the client
    "driver_info": None,  # no CLIENT SETINFO, which servers before 7.2 do not know and ACL rules cannot name there
}

Connect = Callable[[], Any]
"""Makes a connection, not opened yet. May raise redis.RedisError: where the server is can be a question of its own."""


def checked_address(url: str, setting: str) -> RedisAddress:
    """The parts of *url*, the value of *setting*, all of its options usable.

    Raises:
        ConfigInvalid: they are not.
    """
    try:
        address = parse_redis_url(url)
        kind, options = _options(address, None)
        kind(**options)
        if address.is_sentinel:
            _open_sentinel(address, None)
    except (ValueError, TypeError) as error:
        raise ConfigInvalid(f"{setting} {without_password(url)} is not a Redis URL: {error}") from error
    return address


def server_of(address: RedisAddress, timeout_s: float | None = None) -> Connect:
    """Connects to the one server that *address* names: itself, or the master that its Sentinels name at that time."""
    if not address.is_sentinel:
        return node_of(address, *(address.nodes[0] if address.nodes else ("", 0)), timeout_s)
    sentinel = _open_sentinel(address, timeout_s)

    def connect() -> Any:
        host, port = sentinel.discover_master(address.service)  # type: ignore[no-untyped-call]
        return node_of(address, host, port, timeout_s)()

    return connect


def node_of(address: RedisAddress, host: str, port: int, timeout_s: float | None = None) -> Connect:
    """Connects to one node of what *address* names."""
    kind, options = _options(address, timeout_s)
    if not address.path:
        options |= {"host": host, "port": port}
    return lambda: kind(**options)


def _open_sentinel(address: RedisAddress, timeout_s: float | None) -> Sentinel:
    """Make a client that asks the Sentinels of *address* for the master. Nothing is connected yet."""
    assert address.is_sentinel, "others are connected to without a question"
    ours = {"username": "sentinel_username", "password": "sentinel_password"}
    credentials = {name: address.options[key] for name, key in ours.items() if key in address.options}
    rest = {key: value for key, value in address.options.items() if key not in ours.values()}
    limit_s = timeout_s or CONNECT_TIMEOUT_S
    timeouts = {"socket_timeout": limit_s, "socket_connect_timeout": limit_s}
    options = {**rest, **credentials, **timeouts, **_FIXED, "ssl": address.tls}
    return Sentinel(address.nodes, sentinel_kwargs=options)  # type: ignore[no-untyped-call]


def _options(address: RedisAddress, timeout_s: float | None) -> tuple[type[AbstractConnection], dict[str, Any]]:
    """The class of the connection, and its options besides host and port."""
    scheme = "unix" if address.path else "rediss" if address.tls else "redis"
    ours = ("sentinel_username", "sentinel_password") if address.is_sentinel else ()
    rest = {name: value for name, value in address.options.items() if name not in ours}
    options: dict[str, Any] = parse_url(f"{scheme}://?{urlencode(rest)}")  # type: ignore[no-untyped-call]
    kind = options.pop("connection_class", Connection)
    defaults: dict[str, Any] = {"socket_timeout": timeout_s or SOCKET_TIMEOUT_S}
    if address.path:
        defaults["path"] = address.path
    else:
        defaults |= {"socket_connect_timeout": timeout_s or CONNECT_TIMEOUT_S, "socket_keepalive": True}
    credentials = {"username": address.username, "password": address.password, "db": address.db}
    return kind, {**defaults, **options, **credentials, **_FIXED}
