"""Which node has which vbucket: the cluster's configuration, as every node hands it out over KV.

Source: couchbase/kv_engine docs (GET_CLUSTER_CONFIG); the form is that of the cluster manager's terse bucket info.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from channelindex.errors import ConfigInvalid, ProtocolError, SourceUnavailable
from channelindex.feeds.base import SourceInfo
from channelindex.feeds.dcp.connstr import AUTO, DEFAULT_PORT, DEFAULT_TLS_PORT, Endpoint, SourceAddress

_DEFAULT_NETWORK = "default"
_HOST_PLACEHOLDER = "$HOST"
"""Stands for the host under which the client reached the node, in configurations of one node."""


class _Alternate(msgspec.Struct):
    hostname: str = ""
    ports: dict[str, Any] = {}


class _ConfigNode(msgspec.Struct, rename="camel"):
    services: dict[str, Any] = {}
    hostname: str = ""
    this_node: bool = False
    alternate_addresses: dict[str, _Alternate] = {}


class _ServerMap(msgspec.Struct, rename="camel"):
    v_bucket_map: list[list[int]]
    server_list: list[str] = []


class _ClusterConfig(msgspec.Struct, rename="camel"):
    uuid: str
    v_bucket_server_map: _ServerMap
    rev: int = 0
    rev_epoch: int = 0
    nodes_ext: list[_ConfigNode] = []


@dataclass(frozen=True)
class ClusterMap:
    """One revision of the map. `chains` has per vbucket the numbers of its nodes: active first, -1 for none.

    A node of `nodes` is None while it has no address for us; `problems` say why not, one for each such node. Addresses
    are set node by node: while a node joins, it may have none, and no vbuckets either.
    """

    uuid: str
    revision: tuple[int, int]
    nodes: tuple[Endpoint | None, ...]
    chains: tuple[tuple[int, ...], ...]
    here: Endpoint | None
    """The node that handed it out; None if it does not say which it is."""
    problems: tuple[str, ...] = ()

    @property
    def reachable(self) -> tuple[Endpoint, ...]:
        """The nodes that have an address for us; there is one at least."""
        return tuple(endpoint for endpoint in self.nodes if endpoint is not None)

    @property
    def source(self) -> SourceInfo:
        """The bucket's identity and shape."""
        return SourceInfo(self.uuid, len(self.chains))

    def owner(self, vb: int) -> Endpoint | None:
        """The node where *vb* is active; None while there is none, and for a vbucket that the bucket does not have."""
        copies = self.copies(vb)
        return copies[0] if copies else None

    def copies(self, vb: int) -> list[Endpoint | None]:
        """The nodes that have a copy of *vb*, the active one first; None for a copy that is nowhere now."""
        assert vb >= 0
        if vb >= len(self.chains):
            return []
        return [self.nodes[number] if 0 <= number < len(self.nodes) else None for number in self.chains[vb]]


def parse_cluster_map(text: bytes, via: Endpoint, address: SourceAddress) -> ClusterMap:
    """The map in *text*, which came from the node reached at *via*, with the addresses that are for us.

    Raises:
        ProtocolError: it cannot be read.
        SourceUnavailable: the bucket has no vbuckets yet.
        ConfigInvalid: no node at all is reachable in the way that source.url asks for.
    """
    try:
        config = msgspec.json.decode(text, type=_ClusterConfig)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"the cluster configuration cannot be read: {error}") from error
    chains = tuple(map(tuple, config.v_bucket_server_map.v_bucket_map))
    if not chains:
        raise SourceUnavailable("the cluster configuration has no vbuckets yet")
    nodes = list(_data_nodes(config, via, address))
    if not nodes:
        raise SourceUnavailable("the cluster configuration has no nodes with data yet")
    problems = tuple(problem for _, _, problem in nodes if problem)
    if len(problems) == len(nodes):
        raise ConfigInvalid(problems[0])
    here = next((endpoint for endpoint, is_here, _ in nodes if is_here), None)
    endpoints = tuple(endpoint for endpoint, _, _ in nodes)
    assert any(endpoints), "a node has an address for us"
    return ClusterMap(config.uuid, (config.rev_epoch, config.rev), endpoints, chains, here, problems)


_FoundNode = tuple[Endpoint | None, bool, str]
"""A node's address for us, whether it is the one that answered, and why it has no address."""


def _data_nodes(config: _ClusterConfig, via: Endpoint, address: SourceAddress) -> Iterator[_FoundNode]:
    """Yield the nodes in the order in which `vBucketMap` numbers them.

    `nodesExt` has them in the order of `serverList`, with those that have no data service in between or behind.
    """
    described = [node for node in config.nodes_ext if "kv" in node.services or "kvSSL" in node.services]
    network = _network(described, via, address)
    for number, listed in enumerate(config.v_bucket_server_map.server_list):
        if number < len(described):
            node = described[number]
            try:
                yield _endpoint(node, via, address, network), node.this_node, ""
            except ConfigInvalid as error:
                yield None, node.this_node, str(error)
        else:
            yield _listed(listed, via, address), False, ""


def _endpoint(node: _ConfigNode, via: Endpoint, address: SourceAddress, network: str) -> Endpoint:
    service = "kv" if address.tls is None else "kvSSL"
    alternate = node.alternate_addresses.get(network)
    if alternate is not None:
        if alternate.ports and service not in alternate.ports:
            raise ConfigInvalid(
                f"the node {node.hostname or via.host} has no port {service!r} among those of its address "
                f"{alternate.hostname} in the network {network} of source.url: set it in the cluster"
            )
        return _checked(alternate.hostname, (alternate.ports or node.services).get(service), address)
    if network != _DEFAULT_NETWORK:
        raise ConfigInvalid(
            f"source.url asks for network={network}, in which the node {node.hostname or via.host} has no address"
        )
    host = node.hostname if node.hostname not in {"", _HOST_PLACEHOLDER} else via.host
    return _checked(host, node.services.get(service), address)


def _checked(host: str, port: object, address: SourceAddress) -> Endpoint:
    if port is None:
        other = "no TLS; use couchbase://" if address.tls else "nothing but TLS; use couchbases://"
        raise ConfigInvalid(f"the node {host} offers {other} in source.url")
    if not host or not isinstance(port, int) or not 0 < port < 65536:
        raise ProtocolError(f"the cluster configuration has a node at {host!r}, port {port!r}")
    return Endpoint(host.strip("[]").lower(), port)


def _listed(listed: str, via: Endpoint, address: SourceAddress) -> Endpoint:
    """A node of a configuration without `nodesExt`: its port without TLS is all that is known."""
    host, _, text = listed.rpartition(":")
    port = int(text) if text.isascii() and text.isdigit() and len(text) < 6 else DEFAULT_PORT
    host = host.replace(_HOST_PLACEHOLDER, via.host)
    return _checked(host, port if address.tls is None else DEFAULT_TLS_PORT, address)


def _network(nodes: Sequence[_ConfigNode], via: Endpoint, address: SourceAddress) -> str:
    """Which of the nodes' addresses to use: as source.url says, else those among which one of its seeds is."""
    if address.network != AUTO:
        return address.network
    seeds = {seed.host for seed in address.seeds}
    if any((node.hostname or via.host).lower() in seeds for node in nodes):
        return _DEFAULT_NETWORK
    for node in nodes:
        for name, alternate in node.alternate_addresses.items():
            if alternate.hostname.lower() in seeds:
                return name
    return _DEFAULT_NETWORK
