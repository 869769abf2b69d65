"""The bucket: its vbuckets, its map, its expiry times. No I/O."""

import heapq
import secrets
import time
from collections.abc import Callable, Iterable

import orjson

from channelindex.devbucket.vbucket import State, VBucket
from channelindex.errors import ConfigInvalid

MAX_VBUCKETS = 1024
"""What a real bucket has; clients compute a vbucket with 15 bits of a hash, but refuse maps that are longer."""

RELATIVE_EXPIRY_S = 30 * 24 * 3600
"""An expiry up to 30 days counts from now, a larger one is Unix time (docs/BinaryProtocol.md)."""

STATE_CHANGED = 0x02
"""STREAM_END: the vbucket's state changed."""


class Bucket:
    """All vbuckets of a bucket that lives on one node. Used from one thread."""

    def __init__(self, name: str, n_vbuckets: int, clock: Callable[[], float] = time.time) -> None:
        if not 1 <= n_vbuckets <= MAX_VBUCKETS:
            raise ConfigInvalid(f"a bucket has 1 to {MAX_VBUCKETS} vbuckets, not {n_vbuckets}")
        self.name = name
        self.uuid = secrets.token_hex(16)
        self.clock = clock
        self.vbuckets = [VBucket(vb, clock) for vb in range(n_vbuckets)]
        self.map_revision = 1
        self.on_map_change: Callable[[], None] = lambda: None
        self._expiries: list[tuple[int, int, bytes]] = []

    def absolute_expiry(self, expiry: int) -> int:
        """The Unix time that an expiry from the wire means; 0 stays 0, which is never."""
        if 0 < expiry <= RELATIVE_EXPIRY_S:
            return int(self.clock()) + expiry
        return expiry

    def note_expiry(self, vb: int, key: bytes, expiry: int) -> None:
        """Remember that a document may expire; *expiry* is absolute, 0 is never."""
        if expiry:
            heapq.heappush(self._expiries, (expiry, vb, key))

    def expire_due(self) -> None:
        """Let all documents expire that are due, as the expiry pager of a real server does."""
        while self._expiries and self._expiries[0][0] <= self.clock():
            _, vb, key = heapq.heappop(self._expiries)
            self.vbuckets[vb].find(key)

    def bulk_load(self, documents: Iterable[tuple[int, int, bytes, bytes]]) -> None:
        """Store documents (vbucket, seqno, key, value); per vbucket the seqnos rise. Streamed as if from disk."""
        for vb, seqno, key, value in documents:
            self.vbuckets[vb].load(seqno, key, value)
        for vbucket in self.vbuckets:
            vbucket.settle()

    def failover(self, vb: int, lose_last_n: int) -> None:
        """Lose the last seqnos of a vbucket and begin a new history; its streams end."""
        self.vbuckets[vb].failover(lose_last_n)
        self.vbuckets[vb].end_streams(STATE_CHANGED)

    def set_vbucket_state(self, vb: int, state: State) -> None:
        """Move a vbucket away or back; its streams end, and the map has a new revision."""
        if self.vbuckets[vb].set_state(state):
            self.vbuckets[vb].end_streams(STATE_CHANGED)
            self.map_revision += 1
            self.on_map_change()

    def config_json(self, host: str, port: int) -> bytes:
        """The map as a real cluster manager makes it: what clients learn the node and the vbuckets from."""
        uri = f"/pools/default/buckets/{self.name}?bucket_uuid={self.uuid}"
        config = {
            "rev": self.map_revision,
            "revEpoch": 1,
            "name": self.name,
            "nodeLocator": "vbucket",
            "bucketType": "membase",
            "uuid": self.uuid,
            "uri": uri,
            "streamingUri": uri.replace("/buckets/", "/bucketsStreaming/"),
            "nodes": [{"hostname": f"{host}:8091", "ports": {"direct": port}}],
            "nodesExt": [{"services": {"kv": port, "mgmt": 8091}, "thisNode": True, "hostname": host}],
            "vBucketServerMap": {
                "hashAlgorithm": "CRC",
                "numReplicas": 0,
                "serverList": [f"{host}:{port}"],
                "vBucketMap": [[0 if vbucket.state == State.ACTIVE else -1] for vbucket in self.vbuckets],
            },
            "bucketCapabilitiesVer": "",
            "bucketCapabilities": ["xattr", "dcp", "cbhello", "touch", "cccp", "nodesExt"],
            "clusterCapabilitiesVer": [1, 0],
            "clusterCapabilities": {},
        }
        return orjson.dumps(config)
