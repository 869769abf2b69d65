"""The dev bucket's server: a development stand-in for a Couchbase cluster's KV nodes, on loopback only, in memory."""

import asyncio
from collections.abc import Callable, Iterator

from channelindex import logs
from channelindex.errors import ConfigInvalid
from devbucket.accounts import Account, Accounts
from devbucket.bucket import Bucket
from devbucket.bucket_cluster import BucketCluster
from devbucket.bucket_config import MAX_NODES, DevBucketConfig
from devbucket.client_connection import ClientConnection
from devbucket.node_server import NodeServer
from devbucket.placement import ClusterMember, Placement, address_of
from devbucket.storage import Storage

EXPIRY_PAGER_S = 1.0
"""Interval of the search for expired documents that nobody reads."""
FLUSH_S = 0.1
"""Interval of writes to the file: the changes that kill -9 may lose."""

_log = logs.get("devbucket")


class DevBucketServer:
    """All nodes. All methods are called on the loop's thread; stop before start and stop twice do no harm."""

    def __init__(self, config: DevBucketConfig) -> None:
        self.config = config
        placement = Placement(config.n_vbuckets, config.n_nodes, config.n_replicas)
        for number, member in enumerate(placement.members):
            member.host, member.alternate_host = config.host, config.alternate_host
            member.port = config.port and config.port + number
            member.tls_port = config.tls_port and config.tls_port + number
        placement.on_change = self._push_map
        accounts = Accounts([Account(config.user, config.password), *config.more_accounts])
        self.storage = Storage(config.file) if config.file else None
        bucket = self._first_bucket(placement)
        self.cluster = BucketCluster(bucket, accounts, config.idle_timeout_s, asyncio.get_running_loop().time)
        if self.storage is not None:
            self.cluster.flush = self.storage.flush
        self._tls = config.tls.context() if config.tls else None
        self.nodes = [NodeServer(self.cluster, number, self._tls) for number in range(config.n_nodes)]
        self.disk_stalled = False
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def _first_bucket(self, placement: Placement) -> Bucket:
        if self.storage is None:
            return self._new_bucket(placement)
        return self.storage.load(self._new_bucket(placement))

    def _new_bucket(self, placement: Placement) -> Bucket:
        config = self.config
        bucket = Bucket(config.bucket, config.n_vbuckets, placement=placement, collections=config.collections)
        bucket.set_compression(config.compression_mode)
        return bucket

    @property
    def bucket(self) -> Bucket:
        """Return the bucket.

        Raises:
            ConfigInvalid: it is deleted at present.
        """
        if self.cluster.bucket is None:
            raise ConfigInvalid(f"the bucket {self.config.bucket!r} was dropped: create it first")
        return self.cluster.bucket

    @property
    def port(self) -> int:
        """Return the port of the first node; 0 before the start."""
        return self.cluster.placement.members[0].port

    @property
    def url(self) -> str:
        """Return what a configuration's source.url has to say: the bucket, by all its nodes."""
        members = self.cluster.placement.members
        hosts = ",".join(address_of(member.host, member.port) for member in members)
        return f"couchbase://{hosts}/{self.config.bucket}"

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigInvalid: a port is taken.
        """
        for node in self.nodes:
            await node.start()
        self._page_expiries()
        self._flush()
        _log.info("devbucket.listening", url=self.url, vbuckets=self.config.n_vbuckets, msg="for development only")

    def stop(self) -> None:
        """Hang up on everybody, stop listening, and write what is not in the file yet."""
        for timer in self._timers.values():
            timer.cancel()
        for node in self.nodes:
            node.halt()
        if self.storage is not None:
            self.storage.close(self.cluster.bucket)
            self.storage = None

    async def add_node(self) -> int:
        """Let a node join the cluster, on ports that are free; returns its number.

        Raises:
            ConfigInvalid: there are as many nodes as there can be.
        """
        if len(self.nodes) == MAX_NODES:
            raise ConfigInvalid(f"a dev bucket has at most {MAX_NODES} nodes")
        number = self.cluster.placement.add(ClusterMember(host=self.config.host))
        assert number == len(self.nodes), "nodes are numbered in the order in which they came"
        self.nodes.append(NodeServer(self.cluster, number, self._tls))
        await self.nodes[number].start()
        self.cluster.placement.changed()
        return number

    def drop_bucket(self) -> None:
        """Delete the bucket with all its data, also in the file, and hang up on everybody."""
        self.cluster.bucket = None
        if self.storage is not None:
            self.storage.clear()
        for node in self.nodes:
            node.drop_connections()

    def create_bucket(self) -> None:
        """Create the bucket anew, empty and with new histories.

        Raises:
            ConfigInvalid: it is there.
        """
        if self.cluster.bucket is not None:
            raise ConfigInvalid(f"the bucket {self.config.bucket!r} is there already")
        bucket = self._new_bucket(self.cluster.placement)
        if self.storage is not None:
            self.storage.replace(bucket)
        self.cluster.bucket = bucket
        self.cluster.placement.changed()

    def connections(self, name: str = "", node: int | None = None) -> Iterator[ClientConnection]:
        """Return the connections of which the DCP name begins with *name*, of one node or of all."""
        for server in self.nodes:
            if node in (None, server.number):
                yield from server.selected(name)

    def _push_map(self) -> None:
        for connection in self.connections():
            connection.push_map()

    def _page_expiries(self) -> None:
        self._again("pager", EXPIRY_PAGER_S, self._page_expiries)
        if self.cluster.bucket is not None:
            self.cluster.bucket.expire_due()

    def _flush(self) -> None:
        if self.storage is not None:
            self._again("flusher", FLUSH_S, self._flush)
            if not self.disk_stalled:
                self.cluster.persist()

    def _again(self, name: str, after_s: float, act: Callable[[], None]) -> None:
        assert after_s > 0
        self._timers[name] = asyncio.get_running_loop().call_later(after_s, act)
