"""What the nodes of the dev bucket share: the bucket, the map, the accounts. No I/O."""

from collections.abc import Callable, Iterable, Sequence

from channelindex.devbucket.accounts import Accounts
from channelindex.devbucket.bucket import STATE_CHANGED, Bucket
from channelindex.devbucket.topology import Topology
from channelindex.devbucket.vbucket import VBucket


class Cluster:
    """The nodes' common state. `bucket` is None while it is deleted."""

    def __init__(self, bucket: Bucket, accounts: Accounts, idle_timeout_s: float, now: Callable[[], float]) -> None:
        self.bucket: Bucket | None = bucket
        self.topology: Topology = bucket.topology
        self.accounts = accounts
        self.logins_refused = False
        self.warming_up = False
        self.idle_timeout_s = idle_timeout_s
        self.now = now  # monotonic seconds
        self.flush: Callable[[Bucket], None] | None = None  # None: there is no file, memory counts as disk

    def to_select(self) -> Bucket | None:
        """The bucket, if a client can select it: not while a node that has started still reads its data."""
        return None if self.warming_up else self.bucket

    def persist(self) -> None:
        """Let everything that was written so far be on disk."""
        if self.bucket is not None and self.flush is not None:
            self.flush(self.bucket)

    def persisted_seqno(self, vbucket: VBucket) -> int:
        """The last seqno of a vbucket that is on disk."""
        return min(vbucket.persisted_seqno, vbucket.high_seqno) if self.flush is not None else vbucket.high_seqno

    def move(self, moves: Iterable[tuple[int, int]]) -> None:
        """Give vbuckets (vbucket, new owner) to other nodes, which have their data and history then.

        The old owners end their streams, as at the end of a rebalance's takeover.
        """
        for vb, owner in moves:
            self.topology.owner_by_vb[vb] = owner
            if self.bucket is not None:
                self.bucket.vbuckets[vb].end_streams(STATE_CHANGED)
        self.topology.changed()

    def fail_over(self, member: int, survivors: Sequence[int], lose_last_n: int) -> None:
        """Take a node out of the cluster; the survivors have its vbuckets, without the last seqnos of each."""
        vbs = self.topology.owned_by(member)
        self.lose_tails(vbs, lose_last_n)
        self.topology.members[member].in_cluster = False
        self.move(self.topology.spread(vbs, survivors))

    def rebalance(self, members: Sequence[int]) -> None:
        """Spread the vbuckets evenly over *members*, and let only these be in the cluster."""
        for number, member in enumerate(self.topology.members):
            member.in_cluster = number in members
        self.move(self.topology.balanced(members))

    def lose_tails(self, vbs: Iterable[int], lose_last_n: int) -> None:
        """Lose the last seqnos of vbuckets, or as many as there are, and begin new histories."""
        if self.bucket is None:
            return
        for vbucket in [self.bucket.vbuckets[vb] for vb in vbs]:
            vbucket.failover(min(lose_last_n, vbucket.most_to_lose))
            vbucket.end_streams(STATE_CHANGED)
