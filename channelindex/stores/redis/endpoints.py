"""How to reach the servers that a URL names: what redis-py has to be told for a connection to one of them."""

from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from redis.backoff import NoBackoff
from redis.connection import AbstractConnection, Connection, parse_url
from redis.retry import Retry

from channelindex.errors import ConfigInvalid
from channelindex.redis_client import open_sentinel
from channelindex.redis_url import RedisAddress, parse_redis_url, without_password
from channelindex.stores.redis.keys import SETTING

SOCKET_TIMEOUT_S = 5.0
"""For one reply. Longer than Redis' own pauses (fork, eviction), shorter than anybody's patience with a dead peer."""

CONNECT_TIMEOUT_S = 3.0

Connect = Callable[[], Any]
"""Makes a connection, not opened yet. May raise redis.RedisError: where the server is can be a question of its own."""


def store_address(url: str) -> RedisAddress:
    """The parts of *url*, all of its options usable.

    Raises:
        ConfigInvalid: they are not.
    """
    try:
        address = parse_redis_url(url)
        kind, options = _options(address)
        kind(**options)
    except (ValueError, TypeError) as error:
        raise ConfigInvalid(f"{SETTING} {without_password(url)} is not a Redis URL: {error}") from error
    return address


def server_of(address: RedisAddress) -> Connect:
    """Connects to the one server that *address* names: itself, or the master that its Sentinels name at that time."""
    if not address.is_sentinel:
        return node_of(address, *(address.nodes[0] if address.nodes else ("", 0)))
    sentinel = open_sentinel(address, CONNECT_TIMEOUT_S)

    def connect() -> Any:
        host, port = sentinel.discover_master(address.service)  # type: ignore[no-untyped-call]
        return node_of(address, host, port)()

    return connect


def node_of(address: RedisAddress, host: str, port: int) -> Connect:
    """Connects to one node of what *address* names."""
    kind, options = _options(address)
    if not address.path:
        options |= {"host": host, "port": port}
    return lambda: kind(**options)


def _options(address: RedisAddress) -> tuple[type[AbstractConnection], dict[str, Any]]:
    """The class of the connection, and what it has to be told besides host and port."""
    scheme = "unix" if address.path else "rediss" if address.tls else "redis"
    ours = ("sentinel_username", "sentinel_password") if address.is_sentinel else ()
    rest = {name: value for name, value in address.options.items() if name not in ours}
    options: dict[str, Any] = parse_url(f"{scheme}://?{urlencode(rest)}")  # type: ignore[no-untyped-call]
    kind = options.pop("connection_class", Connection)
    defaults: dict[str, Any] = {"socket_timeout": SOCKET_TIMEOUT_S}
    if address.path:
        defaults["path"] = address.path
    else:
        defaults |= {"socket_connect_timeout": CONNECT_TIMEOUT_S, "socket_keepalive": True}
    credentials = {"username": address.username, "password": address.password, "db": address.db}
    # no driver_info: CLIENT SETINFO is unknown before Redis 7.2, and ACL rules cannot allow there what is unknown
    fixed = {"retry": Retry(NoBackoff(), 0), "protocol": 2, "driver_info": None}
    return kind, {**defaults, **options, **credentials, **fixed}
