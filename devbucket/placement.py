"""Which node has which vbucket, and the cluster's configuration as clients are sent it. No I/O."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

NOBODY = -1


def address_of(host: str, port: int) -> str:
    """Return an address as URLs and maps have it: an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass
class ClusterMember:
    """A node as the map names it. One that is out of the cluster is in no map; a TLS port of 0 is none.

    `alternate_host` is where it is reached from outside, if it has such an address; whether its kv ports are in the map
    too is `alternate_kv`: an operator may map none, or forget it.
    """

    host: str = "127.0.0.1"
    port: int = 0
    tls_port: int = 0
    in_cluster: bool = True
    alternate_host: str = ""
    alternate_kv: bool = True

    def services(self) -> dict[str, int]:
        """Return its services' ports."""
        ports = {"kv": self.port, "mgmt": 8091}
        return ports | {"kvSSL": self.tls_port} if self.tls_port else ports

    def as_json(self) -> dict[str, Any]:
        """Return its entry in a map's `nodesExt`."""
        entry: dict[str, Any] = {"services": self.services(), "hostname": self.host}
        if self.alternate_host:
            ports = {name: port for name, port in self.services().items() if self.alternate_kv or name == "mgmt"}
            entry["alternateAddresses"] = {"external": {"hostname": self.alternate_host, "ports": ports}}
        return entry


class Placement:
    """The members by their number, and the member that has a vbucket. Its revision rises with each change.

    A vbucket's replicas are on the members that follow its owner, as many of them as are in the cluster.
    """

    def __init__(self, n_vbuckets: int, n_members: int = 1, n_replicas: int = 0) -> None:
        assert n_vbuckets > 0
        assert n_members > 0
        assert n_replicas >= 0
        self.members = [ClusterMember() for _ in range(n_members)]
        self.owner_by_vb = [vb * n_members // n_vbuckets for vb in range(n_vbuckets)]
        self.n_replicas = n_replicas
        self.revision = 1
        self.on_change: Callable[[], None] = lambda: None

    def changed(self) -> None:
        """There is a new revision; who wants to hear of it does."""
        self.revision += 1
        self.on_change()

    def add(self, member: ClusterMember) -> int:
        """Take a node into the cluster, without a vbucket; returns its number."""
        self.members.append(member)
        assert not self.owned_by(len(self.members) - 1), "it joins without a vbucket"
        return len(self.members) - 1

    def owned_by(self, member: int) -> list[int]:
        """Return the vbuckets of a member."""
        return [vb for vb, owner in enumerate(self.owner_by_vb) if owner == member]

    def replicas_of(self, vb: int) -> list[int]:
        """Return the members that have a replica of a vbucket."""
        assert 0 <= vb < len(self.owner_by_vb)
        n_members, owner = len(self.members), self.owner_by_vb[vb]
        following = [(owner + step) % n_members for step in range(1, n_members)]
        return [number for number in following if self.members[number].in_cluster][: self.n_replicas]

    def spread(self, vbs: Iterable[int], over: Sequence[int]) -> list[tuple[int, int]]:
        """New owners for *vbs*, in turns."""
        assert over, "somebody takes them"
        return [(vb, over[at % len(over)]) for at, vb in enumerate(vbs)]

    def balanced(self, over: Sequence[int]) -> list[tuple[int, int]]:
        """Return the moves (vbucket, new owner) that give each of *over* as many vbuckets as others, or one more."""
        assert over, "somebody has them"
        n_vbuckets = len(self.owner_by_vb)
        target = [over[vb * len(over) // n_vbuckets] for vb in range(n_vbuckets)]
        return [(vb, owner) for vb, owner in enumerate(target) if self.owner_by_vb[vb] != owner]

    def server_list(self) -> tuple[list[str], dict[int, int]]:
        """Return the addresses of the members in the cluster, and each one's place in that list."""
        numbers = [number for number, member in enumerate(self.members) if member.in_cluster]
        addresses = [address_of(self.members[number].host, self.members[number].port) for number in numbers]
        return addresses, {number: place for place, number in enumerate(numbers)}

    def nodes_ext(self, this: int) -> list[dict[str, Any]]:
        """Return the members in the cluster with all their ports; the one that is asked says so."""
        return [
            member.as_json() | ({"thisNode": True} if number == this else {})
            for number, member in enumerate(self.members)
            if member.in_cluster
        ]

    def global_json(self, this: int) -> bytes:
        """Return the nodes without any bucket's map."""
        return orjson.dumps({"rev": self.revision, "revEpoch": 1, "nodesExt": self.nodes_ext(this)})

    def config_json(self, name: str, uuid: str, this: int, active: Sequence[bool], *, with_collections: bool) -> bytes:
        """Return the map as a real cluster manager makes it, as member *this* sends it; *active* by vbucket."""
        assert len(active) == len(self.owner_by_vb), "a state of each vbucket"
        servers, place_of = self.server_list()
        chains = [
            [place_of.get(self.owner_by_vb[vb], NOBODY) if is_active else NOBODY, *self._replica_places(vb, place_of)]
            for vb, is_active in enumerate(active)
        ]
        uri = f"/pools/default/buckets/{name}?bucket_uuid={uuid}"
        config = {
            "rev": self.revision,
            "revEpoch": 1,
            "name": name,
            "nodeLocator": "vbucket",
            "bucketType": "membase",
            "uuid": uuid,
            "uri": uri,
            "streamingUri": uri.replace("/buckets/", "/bucketsStreaming/"),
            "nodes": [
                {"hostname": address_of(member.host, 8091), "ports": {"direct": member.port}}
                for member in self.members
                if member.in_cluster
            ],
            "nodesExt": self.nodes_ext(this),
            "vBucketServerMap": {
                "hashAlgorithm": "CRC",
                "numReplicas": self.n_replicas,
                "serverList": servers,
                "vBucketMap": chains,
            },
            "bucketCapabilitiesVer": "",
            "bucketCapabilities": [*CAPABILITIES, *(["collections"] if with_collections else [])],
            "clusterCapabilitiesVer": [1, 0],
            "clusterCapabilities": {},
        }
        return orjson.dumps(config)

    def _replica_places(self, vb: int, place_of: dict[int, int]) -> list[int]:
        places = [place_of[number] for number in self.replicas_of(vb)]
        assert len(places) <= self.n_replicas
        return places + [NOBODY] * (self.n_replicas - len(places))


CAPABILITIES = ("xattr", "dcp", "cbhello", "touch", "cccp", "nodesExt", "durableWrite", "tombstonedUserXAttrs")
