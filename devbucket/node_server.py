"""One node of the dev bucket: its listeners, plain and TLS, and their connections, on asyncio."""

import asyncio
import ssl
from collections.abc import Iterator

from channelindex.errors import ConfigInvalid
from devbucket.bucket_cluster import BucketCluster
from devbucket.client_connection import ClientConnection
from devbucket.client_session import NodeContext


class NodeServer:
    """A node that can be stopped and started again under the same ports. All methods run on the loop's thread."""

    def __init__(self, cluster: BucketCluster, number: int, tls: ssl.SSLContext | None) -> None:
        self.number = number
        self.connections: set[ClientConnection] = set()
        self._cluster = cluster
        self._member = cluster.placement.members[number]
        self._tls = tls
        self._listeners: list[asyncio.Server] = []

    @property
    def running(self) -> bool:
        """Return whether the node listens."""
        return bool(self._listeners)

    async def start(self) -> None:
        """Listen on the member's ports, which are those that were free if they are 0; twice does no harm.

        Raises:
            ConfigInvalid: a port is taken.
        """
        if self.running:
            return
        node = NodeContext(self._cluster, self.number)  # a new one: DCP names are free again
        self._member.port = await self._listen(node, self._member.port, None)
        if self._tls is not None:
            self._member.tls_port = await self._listen(node, self._member.tls_port, self._tls)

    async def _listen(self, node: NodeContext, port: int, tls: ssl.SSLContext | None) -> int:
        """Listen and return the port."""
        loop = asyncio.get_running_loop()
        host = self._member.host
        try:
            listener = await loop.create_server(lambda: ClientConnection(node, self.connections), host, port, ssl=tls)
        except OSError as error:
            self.halt()
            raise ConfigInvalid(f"cannot listen on {host}:{port}: {error.strerror}") from error
        self._listeners.append(listener)
        return int(listener.sockets[0].getsockname()[1])

    def halt(self) -> None:
        """Stop listening and cut all connections, as a process that ends does; twice does no harm."""
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        self.drop_connections()

    def drop_connections(self) -> None:
        """Cut all connections at once, as a broken network does."""
        for connection in tuple(self.connections):
            connection.abort()

    def selected(self, name: str) -> Iterator[ClientConnection]:
        """Return the connections of which the DCP name begins with *name*; all of them for an empty one."""
        return (connection for connection in tuple(self.connections) if connection.name.startswith(name))
