"""Parses URLs of Redis: one server, a master that Sentinels know, or a cluster. Pure; opens nothing.

    redis://user:password@host:port/db                          one server; rediss:// with TLS
    unix:///path/redis.sock?db=1                                one server of this machine
    redis+sentinel://host:port,host:port/service/db             the master of *service*, asked of any Sentinel
    redis+cluster://host:port,host:port                         a cluster, by any of its nodes

The last two have TLS as rediss+sentinel:// and rediss+cluster://. User and password are those of the data servers; the
Sentinels' own are `?sentinel_username=…&sentinel_password=…`. Every other part behind `?` is left to the client.
"""

from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote

from channelindex.urls import split_url

SCHEMES = (
    "redis",
    "rediss",
    "unix",
    "redis+sentinel",
    "rediss+sentinel",
    "redis+cluster",
    "rediss+cluster",
)
FORMS = (
    "redis://host:port/db, rediss://host:port/db, unix:///path/redis.sock, "
    "redis+sentinel://host:port,host:port/service/db or redis+cluster://host:port,host:port"
)
"""The forms of a URL, for messages."""

REDIS_PORT = 6379
SENTINEL_PORT = 26379


class RedisAddress(NamedTuple):
    """The parts of a URL. `service` is set for Sentinels alone, `path` for unix:// alone; `nodes` is not empty else."""

    scheme: str
    nodes: tuple[tuple[str, int], ...]
    username: str | None
    password: str | None
    db: int
    service: str
    path: str
    options: Mapping[str, str]

    @property
    def tls(self) -> bool:
        """True if connections are encrypted."""
        return self.scheme.startswith("rediss")

    @property
    def is_sentinel(self) -> bool:
        """True if `nodes` are Sentinels."""
        return self.scheme.endswith("+sentinel")

    @property
    def is_cluster(self) -> bool:
        """True if `nodes` are those of a cluster."""
        return self.scheme.endswith("+cluster")


def parse_redis_url(url: str) -> RedisAddress:
    """The parts of *url*.

    Raises:
        ValueError: it is none of the forms above; the message says what is wrong, without the password.
    """
    try:
        parts = split_url(url)
    except ValueError:  # its message may hold the password
        raise ValueError(f"must be {FORMS}") from None
    if parts.scheme not in SCHEMES:
        raise ValueError(f"must be {FORMS}")
    if parts.netloc and "@" not in parts.netloc and "@" in parts.path + parts.fragment:
        raise ValueError("has an @ behind its host: in a password, write / as %2F, ? as %3F and # as %23")
    credentials, _, hosts = parts.netloc.rpartition("@")
    username, _, password = credentials.partition(":")
    options = dict(parse_qsl(parts.query))
    address = RedisAddress(
        scheme=parts.scheme,
        nodes=(),
        username=unquote(username) or None,
        password=unquote(password) or None,
        db=_number(options.pop("db", "0"), "db"),
        service="",
        path="",
        options=options,
    )
    if parts.scheme == "unix":
        if hosts or not parts.path.strip("/"):
            raise ValueError("must look like unix:///path/redis.sock")
        return address._replace(path=unquote(parts.path))
    port = SENTINEL_PORT if address.is_sentinel else REDIS_PORT
    nodes = tuple(_host_and_port(host, port) for host in hosts.split(","))
    if len(nodes) > 1 and "+" not in parts.scheme:
        raise ValueError(f"names several hosts: that needs {parts.scheme}+sentinel:// or {parts.scheme}+cluster://")
    return _with_path(address._replace(nodes=nodes), [unquote(part) for part in parts.path.split("/") if part])


def _with_path(address: RedisAddress, path: list[str]) -> RedisAddress:
    if address.is_cluster:
        if path or address.db:
            raise ValueError("names a database: a cluster has only one")
        return address
    if address.is_sentinel:
        if not 1 <= len(path) <= 2:
            raise ValueError(f"must look like {address.scheme}://host:port,host:port/service/db")
        address = address._replace(service=path.pop(0))
    if len(path) > 1:
        raise ValueError(f"has {'/'.join(path)} where the number of a database belongs")
    assert not address.is_sentinel or address.service, "Sentinels are asked for a master by its name"
    return address._replace(db=_number(path[0], "db")) if path else address


def _host_and_port(text: str, default_port: int) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):  # an IPv6 address has colons of its own
        host, port = text, str(default_port)
    if not host:
        raise ValueError("names no host")
    if not (port.isascii() and port.isdigit()):  # not shown: it may be the beginning of a password with a ? in it
        raise ValueError("has something else where the number of a port belongs")
    number = int(port)
    if not 0 < number < 65536:
        raise ValueError(f"has {number} where a port belongs")
    return host.strip("[]"), number


def _number(text: str, what: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"has {text!r} where the number of a {what} belongs")
    return int(text)


def without_password(url: str) -> str:
    """*url* without user, password and options, for messages. It may be one that `parse_redis_url` refuses."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"
