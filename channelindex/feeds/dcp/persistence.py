"""Rollback mitigation: hold back what a failover could still take away. No I/O.

A change that all copies of its vbucket have on disk survives the failover to any of them. Held back until then, it
comes later, by a fraction of a second on a healthy cluster, and it can be waited for as long as a replica is behind; in
return the consumer is hardly ever rolled back: what is taken back while it is held, nobody has seen. Copies that are
nowhere are not waited for, or one lost node would stop the feed until the next rebalance.
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
        self._held: dict[int, deque[Event]] = {}
        self._let_out: dict[int, Stream] = {}
        self._vbuuid_by_vb: dict[int, int] = {}
        self._persisted: dict[tuple[int, Endpoint], int] = {}
        self.held_bytes = 0
        """About how much memory the held events take."""
        self.unseen_rollbacks: dict[int, Checkpoint] = {}
        """Positions to resume vbuckets at, of which the source took back what was held back; for the feed to take."""

    def begin(self, checkpoints: Mapping[int, Checkpoint]) -> None:
        """The events of these vbuckets will be those behind their checkpoints."""
        self._let_out.update({vb: Stream(vb, at, LIVE) for vb, at in checkpoints.items()})

    def __len__(self) -> int:
        return sum(map(len, self._held.values()))

    def add(self, events: Iterable[Event]) -> None:
        """Take *events* in. Those that a rollback took back are dropped, and it with them: nobody has seen them."""
        for event in events:
            kind, vb = event[0], event[1]
            if vb not in self._let_out:
                continue  # it was dropped
            if kind == ROLLBACK and self._drop_held(vb):
                let_out = self._let_out[vb]
                self.unseen_rollbacks[vb] = let_out.position(let_out.seqno)
                continue
            if kind == HISTORY:
                self._begin_history(vb, event[2][0][0])
            self._held.setdefault(vb, deque()).append(event)
            self.held_bytes += _size(event)

    def forget(self, vbuckets: Iterable[int]) -> None:
        """No event of these vbuckets is wanted any more."""
        for vb in vbuckets:
            self._drop_held(vb)
            self._let_out.pop(vb, None)
            self.unseen_rollbacks.pop(vb, None)

    def _drop_held(self, vb: int) -> bool:
        """Drop what is held of *vb*; whether there was anything that moves its seqno."""
        held = self._held.pop(vb, ())
        self.held_bytes -= sum(map(_size, held))
        assert self.held_bytes >= 0
        return any(event[0] <= ADVANCED for event in held)

    def _begin_history(self, vb: int, vbuuid: int) -> None:
        """Forget what was observed of an earlier history; it does not hold for this one."""
        if self._vbuuid_by_vb.get(vb) != vbuuid:
            self._vbuuid_by_vb[vb] = vbuuid
            for key in [key for key in self._persisted if key[0] == vb]:
                del self._persisted[key]

    def waiting(self) -> Mapping[int, int]:
        """The vbuckets of which events are held back, and the vbuuid of each one's history."""
        return {vb: self._vbuuid_by_vb[vb] for vb in self._held if vb in self._vbuuid_by_vb}

    def observe(self, vb: int, endpoint: Endpoint, found: Observed) -> None:
        """The node at *endpoint* has persisted so much of *vb*."""
        if found.vbuuid == self._vbuuid_by_vb.get(vb):
            self._persisted[vb, endpoint] = found.persisted_seqno

    def take(self, copies_by_vb: Mapping[int, Iterable[Endpoint]]) -> list[Event]:
        """Let out what is persisted on all copies of its vbucket, and everything that no failover can take back."""
        events: list[Event] = []
        for vb, held in list(self._held.items()):
            copies = [self._persisted.get((vb, endpoint), 0) for endpoint in copies_by_vb.get(vb, ())]
            durable = min(copies, default=0)
            while held and not (held[0][0] <= ADVANCED and held[0][2] > durable):
                self.held_bytes -= _size(held[0])
                events.append(held.popleft())
                self._note_let_out(self._let_out[vb], events[-1])
            if not held:
                del self._held[vb]
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
