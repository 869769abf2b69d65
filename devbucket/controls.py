"""Everything that an operator, or a failing network, may do to a dev bucket: what tests and `devbucket ctl` call.

Arguments and answers are plain JSON values. `name` selects connections of which the DCP name begins with it, `node`
those of one node; without them all are meant.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from channelindex.errors import ConfigInvalid
from devbucket.bucket import STATE_CHANGED
from devbucket.client_connection import ClientConnection
from devbucket.node_server import NodeServer
from devbucket.server import DevBucketServer
from devbucket.vbucket import VBucket, VBucketState


class Controls:
    """The operations. All are called on the loop's thread; when one returns, it has happened."""

    def __init__(self, server: DevBucketServer) -> None:
        self._server = server
        self._cluster = server.cluster

    # --- vbuckets

    def bulk_load(self, documents: Iterable[tuple[int, int, bytes, bytes]], *, with_xattrs: bool = False) -> None:
        """Store documents (vbucket, seqno, key, value); per vbucket the seqnos rise above those that are there."""
        self._server.bucket.bulk_load(documents, with_xattrs=with_xattrs)

    def high_seqnos(self) -> list[int]:
        """Tell the high seqno of each vbucket."""
        return [vbucket.high_seqno for vbucket in self._server.bucket.vbuckets]

    def failover(self, vb: int, lose: int = 0) -> None:
        """Lose the last seqnos of a vbucket and begin a new history; its streams end."""
        self._vbucket(vb)
        self._server.bucket.failover(vb, lose)

    def set_state(self, vb: int, state: str) -> None:
        """Make a vbucket active, replica, pending or dead; its streams end, the map has a new revision."""
        self._vbucket(vb)
        if state.upper() not in VBucketState.__members__:
            raise ConfigInvalid(f"there is no state {state!r}: active, replica, pending, dead")
        self._server.bucket.set_vbucket_state(vb, VBucketState[state.upper()])

    def purge(self, vb: int) -> int:
        """Forget a vbucket's tombstones; returns the purge seqno."""
        return self._vbucket(vb).purge()

    def settle(self, vb: int) -> None:
        """Let a vbucket be as after a clean restart: what it holds is streamed from disk."""
        self._vbucket(vb).settle()

    def evict(self, vb: int | None = None, every: int = 1) -> int:
        """Let documents' values, or every N-th one's, be on disk only until somebody reads them; returns the number.

        Streams that begin afterwards read the vbucket from disk.
        """
        if every < 1:
            raise ConfigInvalid(f"every={every} is no number of documents: at least 1")
        vbuckets = self._server.bucket.vbuckets if vb is None else [self._vbucket(vb)]
        return sum(vbucket.evict(every) for vbucket in vbuckets)

    def set_compression(self, mode: str) -> None:
        """Hold values compressed in memory: off, passive (what clients compressed) or active (all)."""
        self._server.bucket.set_compression(mode)

    def purge_seqnos(self) -> list[int]:
        """Tell the purge seqno of each vbucket."""
        return [vbucket.purge_seqno for vbucket in self._server.bucket.vbuckets]

    def new_checkpoint(self, vb: int) -> None:
        """Close the open source checkpoint of a vbucket."""
        self._vbucket(vb).new_checkpoint()

    def close_stream(self, vb: int, reason: int = STATE_CHANGED, name: str = "") -> int:
        """End the streams of a vbucket with a STREAM_END of any reason; returns their number."""
        return sum(connection.end_stream(vb, reason) for connection in self._server.connections(name))

    # --- nodes

    def nodes(self) -> list[dict[str, Any]]:
        """Tell each node's ports, state and number of vbuckets."""
        placement = self._cluster.placement
        return [
            {
                "node": node.number,
                "port": placement.members[node.number].port,
                "tls_port": placement.members[node.number].tls_port,
                "running": node.running,
                "in_cluster": placement.members[node.number].in_cluster,
                "vbuckets": len(placement.owned_by(node.number)),
                "connections": len(node.connections),
            }
            for node in self._server.nodes
        ]

    def owners(self) -> list[int]:
        """Tell the node of each vbucket."""
        return list(self._cluster.placement.owner_by_vb)

    def move(self, vbs: list[int], node: int) -> None:
        """Move vbuckets with their data and history to a node; their old node ends its streams."""
        self._node(node)
        for vb in vbs:
            self._vbucket(vb)
        self._cluster.move([(vb, node) for vb in vbs])

    async def add_node(self) -> int:
        """Let a node join: it has no vbucket before `rebalance`, no alternate address; returns its number."""
        return await self._server.add_node()

    def set_alternate(self, node: int, host: str = "", kv: bool = True) -> None:
        """Give a node an alternate address, with or without its kv ports, or none; the map has a new revision."""
        self._node(node)
        member = self._cluster.placement.members[node]
        member.alternate_host, member.alternate_kv = host, kv
        self._cluster.placement.changed()

    def rebalance(self) -> None:
        """Spread the vbuckets evenly over the running nodes, and let these be the cluster."""
        running = self._running()
        if not running:
            raise ConfigInvalid("there is nothing to rebalance to: no node is running")
        self._cluster.rebalance(running)

    def stop_node(self, node: int) -> None:
        """Stop a node as SIGTERM does: it keeps what it has, and its place in the map."""
        self._node(node).halt()

    def crash_node(self, node: int, lose: int = 0) -> None:
        """Stop a node as kill -9 does: the last seqnos of each of its vbuckets are lost, new histories begin."""
        self._node(node).halt()
        self._cluster.lose_tails(self._cluster.placement.owned_by(node), lose, by_crash=True)

    async def start_node(self, node: int) -> None:
        """Start a node that was stopped: what it has comes from disk."""
        server = self._node(node)
        for vb in self._cluster.placement.owned_by(node) if not server.running else ():
            self._vbucket(vb).settle()
        await server.start()

    def failover_node(self, node: int, lose: int = 0) -> None:
        """Stop a node and give its vbuckets to their replicas, or to all others; the last seqnos of each are lost."""
        survivors = [number for number in self._running() if number != node]
        if not survivors:
            raise ConfigInvalid(f"node {node} cannot be failed over: no other node is running")
        self._node(node).halt()
        self._cluster.fail_over(node, survivors, lose)

    # --- connections

    def drop_connections(self, name: str = "", node: int | None = None) -> int:
        """Cut connections, as a broken network does; returns the number."""
        return self._each(name, node, ClientConnection.abort)

    def stall(self, on: bool = True, name: str = "", node: int | None = None) -> int:
        """Send no stream messages on the connections there are, or go on; returns the number."""
        return self._each(name, node, lambda connection: connection.stall(on=on))

    def connections(self, name: str = "", node: int | None = None) -> list[dict[str, str | int]]:
        """Tell of each connection its peer, DCP name, user and open streams."""
        return [connection.describe() for connection in self._select(name, node)]

    def half_open(self, name: str = "", node: int | None = None) -> int:
        """Make connections half-open, for ever: nothing is read, nothing is sent; returns the number."""
        return self._each(name, node, lambda connection: connection.wire.become_half_open())

    def delay(self, ms: int, name: str = "", node: int | None = None) -> int:
        """Send everything so many milliseconds late; 0 ends it. Tells on how many connections."""

        def set_delay(connection: ClientConnection) -> None:
            connection.wire.delay_s = ms / 1000

        return self._each(name, node, set_delay)

    def fragment(self, size: int, name: str = "", node: int | None = None) -> int:
        """Send everything in pieces of so many bytes; 0 ends it. Tells on how many connections."""

        def set_size(connection: ClientConnection) -> None:
            connection.wire.piece_bytes = size

        return self._each(name, node, set_size)

    def cut_frame(self, name: str = "", node: int | None = None) -> int:
        """Send half of the next document's frame and hang up; returns the number of connections."""
        return self._each(name, node, lambda connection: connection.wire.cut_next())

    def flip_byte(self, offset: int = -1, name: str = "", node: int | None = None) -> int:
        """Invert a byte of the next document's frame: 0 the first, -1 the last; returns the number of connections."""
        return self._each(name, node, lambda connection: connection.wire.flip_next(offset))

    # --- the bucket and its users

    def refuse_logins(self, on: bool = True) -> None:
        """Refuse every login, whatever the password, or be as before; who is logged in stays so."""
        self._cluster.logins_refused = on

    def create_collection(self, path: str) -> None:
        """Create a collection (scope.collection) in a bucket that has some: every vbucket has an event of it."""
        self._server.bucket.create_collection(path)

    def drop_collection(self, path: str) -> None:
        """Drop a collection: nobody reaches its documents. To end its streams too, `close_stream` with reason 7.

        A bucket of a file keeps its collections for good.
        """
        if self._server.config.file is not None:
            raise ConfigInvalid("a bucket of a file keeps its collections")
        self._server.bucket.drop_collection(path)

    def warm_up(self, on: bool = True) -> None:
        """Be as just after a start: no client can select the bucket yet, or be done with it; selected ones stay so."""
        self._cluster.warming_up = on

    def refuse_sync_writes(self, on: bool = True) -> None:
        """Know no durability, as a server before 6.5: what carries it is no frame there, and ends the connection."""
        self._cluster.without_sync_writes = on

    def stall_disk(self, on: bool = True) -> None:
        """Write no more changes to the file, or go on: what kill -9 loses. Durable writes are written all the same."""
        self._server.disk_stalled = on

    def stall_replicas(self, on: bool = True) -> None:
        """Stall all replicas, or let them follow again: a failover of a node then loses what they lack."""
        self._cluster.stall_replicas(on=on)

    def drop_bucket(self) -> None:
        """Delete the bucket with all its data: its connections are cut, nobody can select it."""
        self._server.drop_bucket()

    def create_bucket(self) -> None:
        """Create the bucket anew after it was dropped: empty, with another UUID and other histories."""
        self._server.create_bucket()

    def _each(self, name: str, node: int | None, act: Callable[[ClientConnection], None]) -> int:
        connections = list(self._select(name, node))
        for connection in connections:
            act(connection)
        return len(connections)

    def _select(self, name: str, node: int | None) -> Iterator[ClientConnection]:
        if node is not None:
            self._node(node)
        return self._server.connections(name, node)

    def _running(self) -> list[int]:
        return [node.number for node in self._server.nodes if node.running]

    def _node(self, number: int) -> NodeServer:
        if not 0 <= number < len(self._server.nodes):
            raise ConfigInvalid(f"there is no node {number}: the nodes are 0 to {len(self._server.nodes) - 1}")
        return self._server.nodes[number]

    def _vbucket(self, vb: int) -> VBucket:
        vbuckets = self._server.bucket.vbuckets
        if not 0 <= vb < len(vbuckets):
            raise ConfigInvalid(f"there is no vbucket {vb}: the vbuckets are 0 to {len(vbuckets) - 1}")
        return vbuckets[vb]
