"""Listens on an address, by uvicorn, and ends in good order."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import uvicorn

from channelindex.errors import ConfigInvalid
from channelindex.settings import ServeSettings
from workers.serving.feed_connection import Door, FeedConnection

if TYPE_CHECKING:
    from workers.serving.app import App

BACKLOG = 4096
"""Connections that the kernel keeps for us: all clients come back at once after a restart."""


class DoorConfig(uvicorn.Config):
    """uvicorn's, and the door that connections come by."""

    def __init__(self, door: Door, **settings: Any) -> None:
        super().__init__(**settings)
        self.door = door


class Listener(uvicorn.Server):
    """Serves *app* on *host* and *port*, by *door*; port 0 is any free one. Leaves signals to whoever runs it.

    Raises:
        ConfigInvalid: the certificates cannot be used.
    """

    def __init__(self, app: "App", host: str, port: int, door: Door, settings: ServeSettings) -> None:
        config = DoorConfig(
            door,
            app=cast("Any", app),
            host=host,
            port=port,
            loop="uvloop",
            http=FeedConnection,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=round(settings.slow_client_s),
            timeout_graceful_shutdown=max(1, round(settings.stop_timeout_s)),
            **_tls(settings),
        )
        try:
            config.load()
        except (OSError, ssl.SSLError) as error:
            raise ConfigInvalid(f"serve.tls_cert_file, tls_key_file or tls_client_ca_file: {error}") from error
        super().__init__(config)
        self._is_ready = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take none."""
        yield

    async def listen(self) -> asyncio.Task[None]:
        """Begin to serve; return the task, which ends after `should_exit` is set.

        Raises:
            ConfigInvalid: the address is taken, or not ours.
        """
        host, port = self.config.host, self.config.port
        try:
            bound = await asyncio.get_running_loop().run_in_executor(None, _bound, host, port)
        except OSError as error:
            raise ConfigInvalid(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
        self.config.port = bound.getsockname()[1]
        task = asyncio.create_task(self.serve([bound]))
        ready = asyncio.create_task(self._is_ready.wait())
        await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        return task

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept connections."""
        await super().startup(sockets)
        self._is_ready.set()

    @property
    def url(self) -> str:
        """The address for clients."""
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        return f"{'https' if self.config.is_ssl else 'http'}://{host}:{self.config.port}/"


def _tls(settings: ServeSettings) -> dict[str, Any]:
    if not settings.tls_cert_file:
        return {}
    given: dict[str, Any] = {
        "ssl_certfile": settings.tls_cert_file,
        "ssl_keyfile": settings.tls_key_file or settings.tls_cert_file,
    }
    if settings.tls_client_ca_file:
        given |= {"ssl_ca_certs": settings.tls_client_ca_file, "ssl_cert_reqs": ssl.CERT_REQUIRED}
    return given


def _bound(host: str, port: int) -> socket.socket:
    """A socket of ours on the first address of *host*."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.setblocking(False)
    except BaseException:
        bound.close()
        raise
    return bound
