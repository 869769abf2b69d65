"""The bucket: its vbuckets, its map, its expiry times. No I/O."""

import heapq
import secrets
import time
from collections.abc import Callable, Iterable

from channelindex.errors import ConfigInvalid
from channelindex.mcbp import pack_leb128
from devbucket.manifest import DEFAULT, CollectionManifest
from devbucket.placement import Placement
from devbucket.vbucket import COMPRESSION_MODES, VBucket, VBucketState

MAX_VBUCKETS = 1024
"""The number of a real bucket; clients compute a vbucket with 15 bits of a hash, but refuse maps that are longer."""

RELATIVE_EXPIRY_S = 30 * 24 * 3600
"""An expiry up to 30 days counts from now, a larger one is Unix time (docs/BinaryProtocol.md)."""

STATE_CHANGED = 0x02
"""STREAM_END: the vbucket's state changed."""


class Bucket:
    """All vbuckets of a bucket, whichever node has them. Used from one thread."""

    def __init__(
        self,
        name: str,
        n_vbuckets: int,
        clock: Callable[[], float] = time.time,
        placement: Placement | None = None,
        collections: Iterable[str] = (),
    ) -> None:
        assert 0 < n_vbuckets <= MAX_VBUCKETS
        self.name = name
        self.uuid = secrets.token_hex(16)
        self.clock = clock
        self.vbuckets = [VBucket(vb, clock) for vb in range(n_vbuckets)]
        self.placement = placement or Placement(n_vbuckets)
        assert len(self.placement.owner_by_vb) == n_vbuckets, "each vbucket has an owner"
        self.manifest = CollectionManifest() if collections else None
        for path in collections:
            self.create_collection(path)
        self._expiries: list[tuple[int, int, bytes]] = []

    @property
    def collections(self) -> list[str]:
        """Return the collections besides the default one, in the order of their creation."""
        return list(self.manifest.paths) if self.manifest is not None else []

    def create_collection(self, path: str) -> None:
        """Create the collection *path* (`scope.collection`); every vbucket has an event of it.

        Raises:
            ConfigInvalid: it is there, or the bucket has no collections.
        """
        if self.manifest is None:
            raise ConfigInvalid(f"the bucket {self.name!r} was made without collections")
        for event in self.manifest.create(path):
            for vbucket in self.vbuckets:
                vbucket.note_event(event)

    def drop_collection(self, path: str) -> None:
        """Drop the collection *path*: no stream and no client gets what it holds any more, and nothing is deleted.

        Raises:
            ConfigInvalid: it is not there.
        """
        if self.manifest is None:
            raise ConfigInvalid(f"the bucket {self.name!r} was made without collections")
        self.manifest.drop(path)

    def set_compression(self, mode: str) -> None:
        """Set the bucket's compression mode.

        Raises:
            ConfigInvalid: there is none of that name.
        """
        if mode not in COMPRESSION_MODES:
            raise ConfigInvalid(f"there is no compression mode {mode!r}: {', '.join(COMPRESSION_MODES)}")
        for vbucket in self.vbuckets:
            vbucket.set_compression(mode)

    def absolute_expiry(self, expiry: int) -> int:
        """Return the Unix time that an expiry from the wire means; 0 stays 0, which is never."""
        assert expiry >= 0, "0 is never"
        if 0 < expiry <= RELATIVE_EXPIRY_S:
            return int(self.clock()) + expiry
        return expiry

    def note_expiry(self, vb: int, key: bytes, expiry: int) -> None:
        """Remember that a document may expire; *expiry* is absolute, 0 is never."""
        assert 0 <= vb < len(self.vbuckets)
        if expiry:
            heapq.heappush(self._expiries, (expiry, vb, key))

    def expire_due(self) -> None:
        """Let all documents expire that are due, as the expiry pager of a real server does."""
        while self._expiries and self._expiries[0][0] <= self.clock():
            _, vb, key = heapq.heappop(self._expiries)
            self.vbuckets[vb].find(key)

    def bulk_load(self, documents: Iterable[tuple[int, int, bytes, bytes]], *, with_xattrs: bool = False) -> None:
        """Store documents (vbucket, seqno, key, value); per vbucket the seqnos rise. Streamed as if from disk.

        *with_xattrs*: each value begins with its xattrs, as `mcbp.join_xattrs` puts them.
        """
        for vb, seqno, key, value in documents:
            self.vbuckets[vb].load(seqno, self.key_in_default(key), value, has_xattrs=with_xattrs)
        for vbucket in self.vbuckets:
            vbucket.settle()

    def key_in_default(self, key: bytes) -> bytes:
        """Return how the bucket keeps *key* of the default collection."""
        return key if self.manifest is None else pack_leb128(DEFAULT) + key

    def failover(self, vb: int, lose: int) -> None:
        """Lose the last seqnos of a vbucket and begin a new history; its streams end."""
        self.vbuckets[vb].failover(lose)
        self.vbuckets[vb].end_streams(STATE_CHANGED)

    def set_vbucket_state(self, vb: int, state: VBucketState) -> None:
        """Take a vbucket from its node or give it back; its streams end, and the map has a new revision."""
        if self.vbuckets[vb].set_state(state):
            self.vbuckets[vb].end_streams(STATE_CHANGED)
            self.placement.changed()

    def config_json(self, member: int) -> bytes:
        """Return the map, as that member of the cluster sends it."""
        active = [vbucket.state == VBucketState.ACTIVE for vbucket in self.vbuckets]
        return self.placement.config_json(
            self.name, self.uuid, member, active, with_collections=self.manifest is not None
        )
