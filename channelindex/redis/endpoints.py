"""Makes the options of redis-py for connections to the servers that a URL names."""

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import urlencode

import redis
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.retry import Retry
from redis.sentinel import Sentinel

from channelindex.errors import ConfigInvalid
from channelindex.redis.watchful import (
    LOOK_S,
    Look,
    WatchfulConnection,
    WatchfulSSLConnection,
    WatchfulUnixConnection,
    identify,
    leads_elsewhere,
)
from channelindex.redis_url import RedisAddress, parse_redis_url, without_password

SOCKET_TIMEOUT_S = 5.0
"""For one reply. Longer than Redis' own pauses (fork, eviction), shorter than anybody's patience with a dead peer. Who
has a successor is given up sooner, see `watchful`."""

CONNECT_TIMEOUT_S = 2.0
"""A SYN that is lost is sent again after a second. A machine that lost its power answers none."""

SENTINEL_TIMEOUT_S = 1.0
"""For each Sentinel. The next one is asked then: one may have been on the machine of the master that is gone."""

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
        kind(look=lambda _: False, **options)
        if address.is_sentinel:
            _open_sentinel(address, None)
    except (ValueError, TypeError) as error:
        raise ConfigInvalid(f"{setting} {without_password(url)} is not a Redis URL: {error}") from error
    return address


def server_of(address: RedisAddress, timeout_s: float | None = None) -> Connect:
    """Connects to the one server that *address* names: itself, or the master that its Sentinels name at that time."""
    if address.is_sentinel:
        return _master_of(address, timeout_s)
    host, port = address.nodes[0] if address.nodes else ("", 0)

    def look(connection: Any) -> bool:
        return leads_elsewhere(connect, connection)

    connect = node_of(address, host, port, timeout_s, look=look, identifies=True)
    return connect


def _master_of(address: RedisAddress, timeout_s: float | None) -> Connect:
    assert address.service, "Sentinels know masters by the name of a service"
    sentinel = _open_sentinel(address, timeout_s)
    asked = deque(_open_sentinel(address._replace(nodes=(node,)), LOOK_S / 2) for node in address.nodes)

    def look(connection: Any) -> bool:
        """Ask one Sentinel; the next one next time, where it does not answer or says that nobody is the master now."""
        try:
            named = asked[0].discover_master(address.service)  # type: ignore[no-untyped-call]
        except redis.RedisError:
            asked.rotate(-1)
            return False
        assert connection.host, "it leads to whom they named"
        return bool(named != (connection.host, connection.port))

    def connect() -> Any:
        host, port = sentinel.discover_master(address.service)  # type: ignore[no-untyped-call]
        return node_of(address, host, port, timeout_s, look=look)()

    return connect


def node_of(
    address: RedisAddress,
    host: str,
    port: int,
    timeout_s: float | None = None,
    *,
    look: Look = lambda _: False,
    identifies: bool = False,
) -> Connect:
    """Connects to one node of what *address* names. Where it *identifies*, the node is asked who it is."""
    kind, options = _options(address, timeout_s)
    if not address.path:
        options |= {"host": host, "port": port}
    if identifies:
        options["redis_connect_func"] = identify
    return partial(kind, look=look, **options)


def _open_sentinel(address: RedisAddress, timeout_s: float | None) -> Sentinel:
    """Make a client that asks the Sentinels of *address* for the master. Nothing is connected yet."""
    assert address.is_sentinel, "others are connected to without a question"
    ours = {"username": "sentinel_username", "password": "sentinel_password"}
    credentials = {name: address.options[key] for name, key in ours.items() if key in address.options}
    rest = {key: value for key, value in address.options.items() if key not in ours.values()}
    limit_s = min(timeout_s or SENTINEL_TIMEOUT_S, SENTINEL_TIMEOUT_S)
    timeouts = {"socket_timeout": limit_s, "socket_connect_timeout": limit_s}
    options = {**rest, **credentials, **timeouts, **_FIXED, "ssl": address.tls}
    return Sentinel(address.nodes, sentinel_kwargs=options)  # type: ignore[no-untyped-call]


def _options(address: RedisAddress, timeout_s: float | None) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The class of the connection, and its options besides host and port."""
    scheme = "unix" if address.path else "rediss" if address.tls else "redis"
    ours = ("sentinel_username", "sentinel_password") if address.is_sentinel else ()
    rest = {name: value for name, value in address.options.items() if name not in ours}
    options: dict[str, Any] = parse_url(f"{scheme}://?{urlencode(rest)}")  # type: ignore[no-untyped-call]
    options.pop("connection_class", None)
    tcp = WatchfulSSLConnection if address.tls else WatchfulConnection
    defaults: dict[str, Any] = {"socket_timeout": timeout_s or SOCKET_TIMEOUT_S}
    if address.path:
        defaults["path"] = address.path
    else:
        defaults |= {"socket_connect_timeout": timeout_s or CONNECT_TIMEOUT_S, "socket_keepalive": True}
    credentials = {"username": address.username, "password": address.password, "db": address.db}
    kind = WatchfulUnixConnection if address.path else tcp
    return kind, {**defaults, **options, **credentials, **_FIXED}
