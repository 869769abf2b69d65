"""Holds what the nodes of the dev bucket share: the bucket, the map, the accounts. No I/O."""

from collections.abc import Callable, Iterable, Sequence

from devbucket.accounts import Accounts
from devbucket.bucket import STATE_CHANGED, Bucket
from devbucket.placement import Placement
from devbucket.vbucket import VBucket


class BucketCluster:
    """The nodes' common state. `bucket` is None while it is deleted."""

    def __init__(self, bucket: Bucket, accounts: Accounts, idle_timeout_s: float, now: Callable[[], float]) -> None:
        self.bucket: Bucket | None = bucket
        self.placement: Placement = bucket.placement
        self.accounts = accounts
        self.logins_refused = False
        self.warming_up = False
        self.without_sync_writes = False
        self._replica_seqnos: list[int] | None = None  # where the replicas are stalled, by vbucket
        self.idle_timeout_s = idle_timeout_s
        self.now = now  # monotonic seconds
        self.flush: Callable[[Bucket], None] | None = None  # None: there is no file, memory counts as disk

    def to_select(self) -> Bucket | None:
        """Return the bucket, if a client can select it: not while a node that has started still reads its data."""
        return None if self.warming_up else self.bucket

    def persist(self) -> None:
        """Let everything that was written so far be on disk."""
        if self.bucket is not None and self.flush is not None:
            self.flush(self.bucket)

    def persisted_seqno(self, vbucket: VBucket) -> int:
        """Return the last seqno of a vbucket that is on disk."""
        return min(vbucket.persisted_seqno, vbucket.high_seqno) if self.flush is not None else vbucket.high_seqno

    def stall_replicas(self, *, on: bool) -> None:
        """Stall the replicas at what they have now, or let them follow again."""
        vbuckets = self.bucket.vbuckets if self.bucket is not None else []
        self._replica_seqnos = [vbucket.high_seqno for vbucket in vbuckets] if on else None

    def replica_seqno(self, vbucket: VBucket) -> int:
        """Return the last seqno of a vbucket that its replicas have, on disk too."""
        if self._replica_seqnos is None:
            return vbucket.high_seqno
        return min(self._replica_seqnos[vbucket.vb], vbucket.high_seqno)

    def move(self, moves: Iterable[tuple[int, int]]) -> None:
        """Give vbuckets (vbucket, new owner) to other nodes, which have their data and history then.

        The old owners end their streams, as at the end of a rebalance's takeover.
        """
        for vb, owner in moves:
            self.placement.owner_by_vb[vb] = owner
            if self.bucket is not None:
                self.bucket.vbuckets[vb].end_streams(STATE_CHANGED)
        self.placement.changed()

    def fail_over(self, member: int, survivors: Sequence[int], lose: int) -> None:
        """Take a node out of the cluster; the survivors have its vbuckets, without the last seqnos of each.

        Where there are replicas, they take over, and what they lack is lost too.
        """
        assert member not in survivors
        vbs = self.placement.owned_by(member)
        self.lose_tails(vbs, lose)
        moves = self.placement.spread(vbs, survivors)
        assert [vb for vb, _ in moves] == vbs, "each gets another owner"
        if self.bucket is not None and self.placement.n_replicas:
            for vbucket in [self.bucket.vbuckets[vb] for vb in vbs]:
                self.lose_tails([vbucket.vb], vbucket.high_seqno - self.replica_seqno(vbucket))
            moves = [(vb, next(iter(self._running_replicas(vb, survivors)), owner)) for vb, owner in moves]
        self.placement.members[member].in_cluster = False
        self.move(moves)
        assert not self.placement.owned_by(member), "who is out of the cluster has nothing"

    def _running_replicas(self, vb: int, running: Sequence[int]) -> list[int]:
        return [number for number in self.placement.replicas_of(vb) if number in running]

    def rebalance(self, members: Sequence[int]) -> None:
        """Spread the vbuckets evenly over *members*, and let only these be in the cluster."""
        assert members, "somebody has the vbuckets"
        for number, member in enumerate(self.placement.members):
            member.in_cluster = number in members
        assert all(self.placement.members[number].in_cluster for number in members)
        self.move(self.placement.balanced(members))

    def lose_tails(self, vbs: Iterable[int], lose: int, *, by_crash: bool = False) -> None:
        """Lose the last seqnos of vbuckets, or as many as can be, and begin new histories."""
        if self.bucket is None:
            return
        for vbucket in [self.bucket.vbuckets[vb] for vb in vbs]:
            vbucket.failover(min(lose, vbucket.most_to_lose(by_crash=by_crash)), by_crash=by_crash)
            vbucket.end_streams(STATE_CHANGED)
