"""Assigns the streams to the bucket's nodes by the newest cluster map.

A stream that waits is always at the node that has its vbucket active now, or nowhere while there is none. An open
stream stays where it is until its node ends it or is lost: the node that gives a vbucket away ends its streams.

The map comes with every handshake, with the answer NOT_MY_VBUCKET and on push; it is asked for where one of these
hints that there is a newer one, after the loss of a node, and now and then in case that a push was lost. While no node
can be had, the seeds of the connection string and all nodes known are tried in turn.
"""

import random
from collections.abc import Collection, Iterator, Mapping
from functools import partial

from channelindex import logs
from channelindex.backoff import Backoff
from channelindex.errors import ChannelIndexError, ConfigInvalid, IndexMismatch, ProtocolError, SourceUnavailable
from channelindex.feeds.dcp.connstr import Endpoint, SourceAddress
from channelindex.feeds.dcp.node import LONGEST_RETRY_S, Connect, Node
from channelindex.feeds.dcp.session import Session
from channelindex.feeds.dcp.streams import Streams
from channelindex.feeds.dcp.topology import ClusterMap, parse_cluster_map
from channelindex.model import Checkpoint

_REFRESH_S = 10.0
"""Ask for the map at least so often: what is pushed can be lost."""
_LEAST_REFRESH_S = 0.5
"""And never more often: a rebalance of a thousand vbuckets hints a thousand times."""

_log = logs.get("feed")


class Cluster:
    """The nodes of one feed. *connect* makes their connections; *source_uuid* is the bucket's to expect, if known.

    *with_copies*: there are connections also to the nodes that have but replicas of our vbuckets.
    """

    def __init__(
        self, address: SourceAddress, connect: Connect, source_uuid: str | None, *, with_copies: bool = False
    ) -> None:
        assert address.seeds, "there is a node to begin with"
        self._address = address
        self._connect = connect
        self._source_uuid = source_uuid
        self._with_copies = with_copies
        self._map: ClusterMap | None = None
        self._nodes: dict[Endpoint, Node] = {}
        self._homeless = Streams({})
        self._seeker: Node | None = None
        self._seek_at = 0.0
        self._seek_error: ChannelIndexError | None = None
        self._n_sought = random.randrange(len(address.seeds))
        self._backoff = Backoff(0.1, LONGEST_RETRY_S)
        self._refreshed_at = 0.0
        self._refresh_at = 0.0

    def take(self, streams: Streams) -> None:
        """Run these *streams*, in place of all earlier ones."""
        self.disconnect()
        self._nodes.clear()
        assert self._seeker is None, "no connection is left"
        self._homeless = streams

    def add(self, checkpoints: Mapping[int, Checkpoint]) -> None:
        """Stream these vbuckets too, each from its checkpoint."""
        self._homeless.add(checkpoints)

    def drop(self, vbuckets: Collection[int]) -> None:
        """Stream these vbuckets no more."""
        for endpoint, streams in self._homes():
            open_vbuckets = streams.drop([vb for vb in vbuckets if vb in streams])
            session = self.session_at(endpoint)
            if session is not None:
                session.close_streams(open_vbuckets)

    def resume(self, checkpoints: Mapping[int, Checkpoint]) -> None:
        """Stream these vbuckets, which were rolled back, each from its checkpoint."""
        for _, streams in self._homes():
            for vb in [vb for vb in checkpoints if vb in streams]:
                streams.resume(vb, checkpoints[vb])

    @property
    def n_nodes(self) -> int:
        """Number of nodes with streams of ours."""
        return len(self._nodes)

    @property
    def running(self) -> bool:
        """True if every stream that should run is running."""
        return self._homeless.all_running and all(node.running for node in self._nodes.values())

    @property
    def ended(self) -> bool:
        """True if every stream has come to its end."""
        return self._homeless.all_ended and all(node.streams.all_ended for node in self._nodes.values())

    @property
    def last_error(self) -> ChannelIndexError | None:
        """Why a node cannot be had, or none can."""
        return next((node.last_error for node in self.all_nodes() if node.last_error), self._seek_error)

    def all_nodes(self) -> list[Node]:
        """The nodes with streams, and the one that is asked for the map, if there is one."""
        return [*self._nodes.values(), *([self._seeker] if self._seeker else [])]

    def tick(self, now: float) -> float:
        """Do what is due at *now*; when to call again, at the latest."""
        self._settle()
        next_at = min(self._refresh(now), self._seek(now))
        for node in self.all_nodes():
            try:
                next_at = min(next_at, node.tick(now))
            except (SourceUnavailable, ProtocolError) as error:
                self.lose(node, error, now)
                next_at = min(next_at, node.connect_at if node in self._nodes.values() else self._seek_at)
        return next_at

    def lose(self, node: Node, error: ChannelIndexError, now: float) -> None:
        """The connection to *node* is lost, or cannot be made."""
        node.lose(error, now)
        if node is self._seeker:
            self._seeker = None
            self._seek_error = error
            self._seek_at = now + self._backoff.next_delay_s()
        self.refresh_soon(now)

    def refresh_soon(self, now: float) -> None:
        """Something hints that the map is old."""
        self._refresh_at = min(self._refresh_at, max(now, self._refreshed_at + _LEAST_REFRESH_S))

    def check(self) -> None:
        """Assert what holds after every tick."""
        vbuckets = [vb for _, streams in self._homes() for vb in streams.vbuckets]
        assert len(vbuckets) == len(set(vbuckets)), "a stream is at one node, or nowhere"
        assert all(node.endpoint == endpoint for endpoint, node in self._nodes.items())
        assert self._seeker not in self._nodes.values(), "who is asked for the map has no streams yet"
        for _, streams in self._homes():
            streams.check()

    def disconnect(self) -> None:
        """Close all connections; `tick` makes new ones at once."""
        for node in self.all_nodes():
            node.disconnect()
        self._seeker = None

    def copies(self, vb: int) -> list[Endpoint]:
        """The nodes that have a copy of *vb* now."""
        return [endpoint for endpoint in self._map.copies(vb) if endpoint is not None] if self._map else []

    def session_at(self, endpoint: Endpoint | None) -> Session | None:
        """The session with the node at *endpoint*, if it is past its handshake."""
        node = self._nodes.get(endpoint) if endpoint else None
        return node.connection.session if node is not None and node.live and node.connection is not None else None

    # -- the map

    def learn(self, node: Node, text: bytes, now: float) -> None:
        """*node* sent the cluster's configuration.

        Raises:
            IndexMismatch: it is of another bucket of the same name.
            ProtocolError, SourceUnavailable, ConfigInvalid: as `parse_cluster_map`.
        """
        found = self._parse(text, node.endpoint)
        if self._source_uuid is None:
            self._source_uuid = found.uuid
        if self._source_uuid != found.uuid:
            raise IndexMismatch(
                f"the bucket {self._address.bucket!r} of source.url has the UUID {found.uuid}, expected "
                f"{self._source_uuid}: it was deleted and created anew. "
                "Give index.name a new value: `rebuild` indexes the bucket that an index began with"
            )
        node.announced = found.here or node.endpoint
        self._refreshed_at = now
        self._refresh_at = now + _REFRESH_S
        if self._map is None or found.revision > self._map.revision:
            _log.info("feed.map_changed", revision=found.revision[1], nodes=len(found.nodes), reported_by=node.endpoint)
            self._map = found
            for problem in found.problems:
                _log.warning("feed.node_without_address", msg=problem, reported_by=node.endpoint)

    def _parse(self, text: bytes, via: Endpoint) -> ClusterMap:
        """Parse a map. Once there was one that could be used, one that cannot is not our setting's fault.

        Raises:
            SourceUnavailable: no node has an address for us any more.
        """
        try:
            return parse_cluster_map(text, via, self._address)
        except ConfigInvalid as error:
            if self._map is None:
                raise
            raise SourceUnavailable(str(error)) from error

    def _refresh(self, now: float) -> float:
        """Ask one of the nodes for the map when it is time."""
        live = [node for node in self.all_nodes() if node.live]
        if now >= self._refresh_at and live:
            connection = random.choice(live).connection
            assert connection is not None
            connection.session.ask_config()
            self._refreshed_at = now
            self._refresh_at = now + _REFRESH_S
        return self._refresh_at if live else float("inf")

    def _seek(self, now: float) -> float:
        """While no node can be had, try the next that might."""
        if self._seeker is not None or any(node.live for node in self._nodes.values()):
            return float("inf")
        known = [*self._address.seeds, *(self._map.reachable if self._map else ())]
        candidates = [endpoint for endpoint in dict.fromkeys(known) if endpoint not in self._nodes]
        if not candidates or now < self._seek_at:
            return self._seek_at if candidates else float("inf")
        attempt, number = divmod(self._n_sought, len(candidates))
        self._seeker = Node(candidates[number], self._connect, attempt)
        self._n_sought += 1
        return float("inf")  # until the node says when

    # -- which node has which streams

    def _settle(self) -> None:
        """Bring every stream that waits to its node, and make and drop nodes accordingly."""
        if self._map is None:
            return
        for node in list(self._nodes.values()):
            if node.endpoint not in self._map.nodes:
                _log.info("feed.node_left", server=node.endpoint)
                node.disconnect()
                del self._nodes[node.endpoint]
                self._adopt(node.streams)
        for endpoint, streams in self._homes():
            for stream in streams.release(partial(self._is_at, endpoint)):
                assert self._home(stream.vb) is not streams, "it does not stay"
                self._home(stream.vb).adopt(stream)
        self._settle_seeker()
        observed = self._with_our_copies() if self._with_copies else set()
        for endpoint in observed - self._nodes.keys():
            self._nodes[endpoint] = Node(endpoint, self._connect)
        for node in list(self._nodes.values()):
            if not len(node.streams) and node.endpoint not in observed:
                node.disconnect()
                del self._nodes[node.endpoint]

    def _is_at(self, endpoint: Endpoint | None, vb: int) -> bool:
        return self._map is not None and self._map.owner(vb) == endpoint

    def _with_our_copies(self) -> set[Endpoint]:
        return {endpoint for _, streams in self._homes() for vb in streams.vbuckets for endpoint in self.copies(vb)}

    def _homes(self) -> Iterator[tuple[Endpoint | None, Streams]]:
        yield None, self._homeless
        yield from [(node.endpoint, node.streams) for node in self._nodes.values()]

    def _adopt(self, streams: Streams) -> None:
        for stream in streams.release_all():
            self._home(stream.vb).adopt(stream)

    def _home(self, vb: int) -> Streams:
        """The streams of the node that has *vb* active; the homeless ones while there is none."""
        endpoint = self._map.owner(vb) if self._map else None
        if endpoint is None:
            return self._homeless
        if endpoint not in self._nodes:
            self._nodes[endpoint] = Node(endpoint, self._connect)
        return self._nodes[endpoint].streams

    def _settle_seeker(self) -> None:
        """The node that was asked for the map stays if it has vbuckets of ours, else until another can be had."""
        seeker = self._seeker
        if seeker is None or seeker.announced is None:
            return
        seeker.endpoint = seeker.announced
        assert not len(seeker.streams), "who is asked for the map has no streams yet"
        known = self._nodes.get(seeker.endpoint)
        if known is not None and not known.live:
            known.disconnect()
            for stream in known.streams.release_all():
                seeker.streams.adopt(stream)
            self._nodes[seeker.endpoint] = seeker
        elif any(node.live for node in self._nodes.values()):
            seeker.disconnect()
        else:
            return
        self._seeker = self._seek_error = None
        self._backoff.reset()
