"""The dev bucket's server: a development stand-in for one Couchbase KV node, on loopback only, in memory.

`DevBucketServer` runs inside an event loop; `serve` is a whole process's main function.
"""

import asyncio
import ipaddress
import signal
from collections.abc import Callable
from dataclasses import dataclass

from channelindex import logs
from channelindex.devbucket.accounts import Account, Accounts
from channelindex.devbucket.bucket import MAX_VBUCKETS, Bucket
from channelindex.devbucket.connection import Connection
from channelindex.devbucket.session import Node
from channelindex.errors import ConfigInvalid

IDLE_TIMEOUT_S = 360.0
"""A real server's: how long a DCP client may say nothing while no-ops are on."""

EXPIRY_PAGER_S = 1.0
"""How often documents are looked for that expired and that nobody reads."""

_log = logs.get("devbucket")


@dataclass(frozen=True)
class DevBucketConfig:
    """How to set up a dev bucket; port 0 takes a free one. `more_accounts` are for tests of access control."""

    host: str = "127.0.0.1"
    port: int = 0
    bucket: str = "default"
    user: str = "Administrator"
    password: str = "password"  # noqa: S105 - what a development cluster has, and it is on loopback
    n_vbuckets: int = MAX_VBUCKETS
    more_accounts: tuple[Account, ...] = ()
    idle_timeout_s: float = IDLE_TIMEOUT_S

    def __post_init__(self) -> None:
        """Refuse what would put a server without protection on a network."""
        if not _is_loopback(self.host):
            raise ConfigInvalid(f"the dev bucket listens on loopback only: host {self.host!r}, use 127.0.0.1")


class DevBucketServer:
    """The server. All methods are called on the loop's thread; stop before start and stop twice do no harm."""

    def __init__(self, config: DevBucketConfig) -> None:
        self.config = config
        self.bucket = Bucket(config.bucket, config.n_vbuckets)
        self.bucket.on_map_change = self._push_map
        self._accounts = Accounts([Account(config.user, config.password), *config.more_accounts])
        self._connections: set[Connection] = set()
        self._listener: asyncio.Server | None = None
        self._pager: asyncio.TimerHandle | None = None

    @property
    def port(self) -> int:
        """The port that the server listens on; 0 before the start."""
        return int(self._listener.sockets[0].getsockname()[1]) if self._listener else 0

    @property
    def url(self) -> str:
        """What a configuration's source.url has to say."""
        return f"couchbase://{self.config.host}:{self.port}/{self.config.bucket}"

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigInvalid: the port is taken.
        """
        loop = asyncio.get_running_loop()
        node = Node(self.bucket, self._accounts, self.config.idle_timeout_s, loop.time)
        try:
            self._listener = await loop.create_server(
                lambda: Connection(node, self._connections), self.config.host, self.config.port
            )
        except OSError as error:
            raise ConfigInvalid(f"cannot listen on {self.config.host}:{self.config.port}: {error.strerror}") from error
        node.address = (self.config.host, self.port)
        self._page_expiries()
        _log.info("devbucket.listening", url=self.url, vbuckets=self.config.n_vbuckets, msg="for development only")

    async def stop(self) -> None:
        """Hang up on everybody and stop listening."""
        if self._pager is not None:
            self._pager.cancel()
        self.drop_connections()
        if self._listener is not None:
            self._listener.close()
            await self._listener.wait_closed()
            self._listener = None

    def drop_connections(self) -> None:
        """Cut all connections at once, as a broken network does."""
        for connection in tuple(self._connections):
            connection.abort()

    def stall(self, *, on: bool) -> None:
        """Send no stream messages, on all connections there are, or go on."""
        for connection in self._connections:
            connection.stall(on=on)

    def end_stream(self, vb: int, reason: int) -> int:
        """End the streams of a vbucket on all connections; returns how many."""
        return sum(connection.end_stream(vb, reason) for connection in tuple(self._connections))

    def _push_map(self) -> None:
        for connection in tuple(self._connections):
            connection.push_map()

    def _page_expiries(self) -> None:
        self.bucket.expire_due()
        self._pager = asyncio.get_running_loop().call_later(EXPIRY_PAGER_S, self._page_expiries)


def serve(
    host: str,
    port: int,
    bucket: str,
    user: str,
    password: str,
    n_vbuckets: int,
    ready: Callable[[str], None],
    load: Callable[[Bucket], None] | None = None,
) -> None:
    """Run a dev bucket until SIGTERM or SIGINT. *load* fills the bucket first; *ready* is told the URL.

    Raises:
        ConfigInvalid: the host is not loopback, the port is taken, or n_vbuckets is out of range.
    """
    config = DevBucketConfig(host, port, bucket, user, password, n_vbuckets)
    asyncio.run(_serve(config, ready, load))


async def _serve(config: DevBucketConfig, ready: Callable[[str], None], load: Callable[[Bucket], None] | None) -> None:
    server = DevBucketServer(config)
    if load is not None:
        load(server.bucket)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    await server.start()
    ready(server.url)
    await stopped.wait()
    await server.stop()
    _log.info("devbucket.stopped")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
