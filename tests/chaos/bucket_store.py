"""An index in a bucket of its own: a dev bucket of three nodes, which fail while the world goes on."""

from collections.abc import Iterator
from contextlib import contextmanager

from devbucket import DevBucket, DevBucketConfig

N_NODES = 3
N_VBUCKETS = 64
DURABILITY = "majority_and_persist_to_active"
"""The level at which neither a failover nor a crash may lose what was acknowledged."""


class BucketStore:
    """The bucket. One fault at a time: of three nodes, two are to be had."""

    def __init__(self) -> None:
        config = DevBucketConfig(bucket="index", n_vbuckets=N_VBUCKETS, n_nodes=N_NODES, n_replicas=1)
        self.bucket = DevBucket(config).__enter__()
        self.settings: dict[str, object] = {
            "index__user": self.bucket.user,
            "index__password": self.bucket.password,
            "index__durability": DURABILITY,
        }
        self._is_taken = False

    @property
    def url(self) -> str:
        """Where nodes and readers find it."""
        return self.bucket.url

    @contextmanager
    def taken(self) -> Iterator[bool]:
        """Have the bucket for one fault, healing included; False if another one has it."""
        if self._is_taken:
            yield False
            return
        self._is_taken = True
        try:
            yield True
        finally:
            self._is_taken = False

    def revive(self) -> None:
        """Start what has ended: nothing, each fault heals what it did."""

    def lift_limit(self) -> None:
        """Give it memory: it has it."""

    def close(self) -> None:
        """End it."""
        self.bucket.__exit__(None, None, None)
