"""Rollback mitigation: withhold what a failover could still take away. No I/O.

A change that all copies of its vbucket have on disk survives the failover to any of them. Withheld until then, it
is delivered later: by a fraction of a second on a healthy cluster, by as long as a replica is behind on another. In
return the consumer is hardly ever rolled back, for nobody has seen what the source takes back while it is withheld.
Copies that are on no node are not waited for, or one lost node would stop the feed until the next rebalance.
"""

from collections import deque
from collections.abc import Iterable, Mapping

from channelindex.feeds.base import ADVANCED, EXPIRATION, HISTORY, ROLLBACK, SNAPSHOT, Event
from channelindex.feeds.dcp.connstr import Endpoint
from channelindex.feeds.dcp.messages import Observed
from channelindex.feeds.dcp.streams import LIVE, Stream
from channelindex.model import Checkpoint

_EVENT_BYTES = 200
"""About what an event takes besides its key and value."""


class PersistenceGate:
    """Takes events in and lets them out, per vbucket in their order, up to what is persisted on all copies."""

    def __init__(self) -> None:
        self._withheld: dict[int, deque[Event]] = {}
        self._let_out: dict[int, Stream] = {}
        self._vbuuid_by_vb: dict[int, int] = {}
        self._persisted: dict[tuple[int, Endpoint], int] = {}
        self.withheld_bytes = 0
        """About how much memory the withheld events take."""
        self.unseen_rollbacks: dict[int, Checkpoint] = {}
        """Positions to resume vbuckets at, of which the source took back what was withheld; for the feed to take."""

    def begin(self, checkpoints: Mapping[int, Checkpoint]) -> None:
        """The events of these vbuckets will be those behind their checkpoints."""
        self._let_out.update({vb: Stream(vb, at, LIVE) for vb, at in checkpoints.items()})

    def __len__(self) -> int:
        return sum(map(len, self._withheld.values()))

    def add(self, events: Iterable[Event]) -> None:
        """Take *events* in. Those that a rollback took back are dropped, and it with them: nobody has seen them."""
        for event in events:
            kind, vb = event[0], event[1]
            if vb not in self._let_out:
                continue  # it was dropped
            if kind == ROLLBACK and self._drop_withheld(vb):
                let_out = self._let_out[vb]
                self.unseen_rollbacks[vb] = let_out.position(let_out.seqno)
                continue
            if kind == HISTORY:
                self._begin_history(vb, event[2][0][0])
            self._withheld.setdefault(vb, deque()).append(event)
            self.withheld_bytes += _size(event)

    def forget(self, vbuckets: Iterable[int]) -> None:
        """Drop all events of these vbuckets, which are no longer streamed."""
        for vb in vbuckets:
            self._drop_withheld(vb)
            self._let_out.pop(vb, None)
            self.unseen_rollbacks.pop(vb, None)

    def _drop_withheld(self, vb: int) -> bool:
        """Drop what is withheld of *vb*; whether there was anything that moves its seqno."""
        withheld = self._withheld.pop(vb, ())
        self.withheld_bytes -= sum(map(_size, withheld))
        assert self.withheld_bytes >= 0
        return any(event[0] <= ADVANCED for event in withheld)

    def _begin_history(self, vb: int, vbuuid: int) -> None:
        """Forget what was observed of an earlier history; it does not hold for this one."""
        if self._vbuuid_by_vb.get(vb) != vbuuid:
            self._vbuuid_by_vb[vb] = vbuuid
            for key in [key for key in self._persisted if key[0] == vb]:
                del self._persisted[key]

    def waiting(self) -> Mapping[int, int]:
        """The vbuckets of which events are withheld, and the vbuuid of each one's history."""
        return {vb: self._vbuuid_by_vb[vb] for vb in self._withheld if vb in self._vbuuid_by_vb}

    def observe(self, vb: int, endpoint: Endpoint, found: Observed) -> None:
        """The node at *endpoint* has persisted so much of *vb*."""
        if found.vbuuid == self._vbuuid_by_vb.get(vb):
            self._persisted[vb, endpoint] = found.persisted_seqno

    def take(self, copies_by_vb: Mapping[int, Iterable[Endpoint]]) -> list[Event]:
        """Let out what is persisted on all copies of its vbucket, and everything that no failover can take back."""
        events: list[Event] = []
        for vb, withheld in list(self._withheld.items()):
            copies = [self._persisted.get((vb, endpoint), 0) for endpoint in copies_by_vb.get(vb, ())]
            durable = min(copies, default=0)
            while withheld and not (withheld[0][0] <= ADVANCED and withheld[0][2] > durable):
                self.withheld_bytes -= _size(withheld[0])
                events.append(withheld.popleft())
                self._note_let_out(self._let_out[vb], events[-1])
            if not withheld:
                del self._withheld[vb]
        return events

    def _note_let_out(self, stream: Stream, event: Event) -> None:
        kind = event[0]
        if kind <= ADVANCED:
            stream.seqno = event[2]
        elif kind == SNAPSHOT:
            stream.snap_start, stream.snap_end = event[2:4]
            stream.purge_seqno = event[4] if len(event) > 4 else stream.purge_seqno
        elif kind == HISTORY:
            stream.vbuuid = event[2][0][0]


def _size(event: Event) -> int:
    return _EVENT_BYTES + (len(event[3]) + len(event[5]) if event[0] <= EXPIRATION else 0)
