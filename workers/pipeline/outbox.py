"""The feed worker's way out: rounds into ring frames, frames into rings, and what of them has been committed."""

import time
from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from operator import le
from typing import NamedTuple, Protocol

from channelindex.errors import OwnershipLost
from channelindex.model import Checkpoint
from workers.pipeline.frames import pack_frames
from workers.pipeline.ring import Bell, Ring
from workers.pipeline.round import Round


class _InFlight(NamedTuple):
    positions: tuple[int, ...]
    checkpoints: dict[int, Checkpoint]
    n_events: int
    put_ns: int


class StableQueue:
    """Queues (ring positions, checkpoints), one item per round, first in, first out.

    Invariant: a checkpoint leaves the queue only when every writer has committed its ring past the position that
    the ring had when the round was published, so each entry of the round, and of all rounds before, is in the index.
    """

    def __init__(self) -> None:
        self._queue: deque[_InFlight] = deque()
        self.n_events = 0
        """Events that are in the rings or in a batch, and not yet committed by every writer."""

    def push(
        self, positions: Sequence[int], checkpoints: dict[int, Checkpoint], n_events: int, put_ns: int = 0
    ) -> None:
        """Remember a round, made at *put_ns*, whose frames end at *positions* (by writer, the producer's cursor).

        A round without frames joins the one before: while a store is away, documents that mean nothing for the index go
        on coming, and must not fill the memory.
        """
        assert n_events >= 0
        self.n_events += n_events
        last = self._queue[-1] if self._queue else None
        assert last is None or all(map(le, last.positions, positions)), "a ring's position never goes back"
        if last and last.positions == tuple(positions):
            self._queue[-1] = last._replace(
                checkpoints={**last.checkpoints, **checkpoints}, n_events=last.n_events + n_events
            )
        else:
            self._queue.append(_InFlight(tuple(positions), checkpoints, n_events, put_ns))

    def pop_committed(self, committed: Sequence[int]) -> dict[int, Checkpoint]:
        """Take out the rounds that all writers have *committed*; return the newest checkpoint of each vbucket."""
        newest: dict[int, Checkpoint] = {}
        while self._queue and all(map(le, self._queue[0].positions, committed)):
            item = self._queue.popleft()
            newest.update(item.checkpoints)
            self.n_events -= item.n_events
        assert self.n_events >= 0
        assert self._queue or self.n_events == 0, "what is in no round is not on its way"
        return newest

    def check(self) -> None:
        """Assert what holds after every step."""
        assert self.n_events == sum(item.n_events for item in self._queue)
        for one, after in pairwise(self._queue):
            assert one.positions != after.positions, "a round without frames joins the one before"
            assert all(map(le, one.positions, after.positions)), "a ring's position never goes back"
            assert one.put_ns <= after.put_ns, "the oldest round is the first one"

    @property
    def first(self) -> Sequence[int]:
        """Positions at which the frames of the first round end, by writer."""
        return self._queue[0].positions

    def vbuckets(self) -> set[int]:
        """Return the vbuckets of the rounds in the queue."""
        return {vb for item in self._queue for vb in item.checkpoints}

    @property
    def oldest_ns(self) -> int | None:
        """Time at which the first round in the queue was made; None for an empty queue."""
        return self._queue[0].put_ns if self._queue else None

    def __len__(self) -> int:
        return len(self._queue)


class Outbox(Protocol):
    """The feed worker's way out: takes rounds, one after the other, and reports what of them is in the index."""

    @property
    def n_rounds(self) -> int:
        """Rounds that are handed over and not yet committed by every writer."""
        ...

    @property
    def n_events(self) -> int:
        """Events that were put and are not yet committed by every writer."""
        ...

    @property
    def oldest_ns(self) -> int:
        """Since when the oldest round waits that is not committed by every writer (monotonic); 0 where none does."""
        ...

    @property
    def fill_bytes(self) -> int:
        """Bytes that wait for the writers."""
        ...

    @property
    def capacity_bytes(self) -> int:
        """Bytes that may wait for the writers."""
        ...

    @property
    def empty(self) -> bool:
        """True if every writer has committed everything that was put."""
        ...

    def begin(self, epoch: int, servers: int = 0) -> None:
        """Have the writers skip whatever an earlier life left.

        *servers*, by their digest, are those of the store in which the epoch began: no others may take what is put.
        """
        ...

    def put(self, taken: Round, epoch: int, group: str) -> None:
        """Take a round over. Only when the one before is handed over (`flush` returned True)."""
        ...

    def flush(self) -> bool:
        """Hand over to the writers as far as there is room; return whether nothing is left to hand over."""
        ...

    @property
    def holds_back(self) -> bool:
        """True if a part of the last round waits for room."""
        ...

    def vbuckets(self) -> set[int]:
        """Return the vbuckets of what was put and is not yet committed by every writer."""
        ...

    def pop_committed(self) -> dict[int, Checkpoint]:
        """Take out the newest checkpoints, by vbucket, that the index now holds everything for.

        Raises:
            OwnershipLost: other servers of the store than those in which the epoch began took a part of it, or a writer
                did not get it stored, because a newer epoch writes the same blocks. None of it may become stable.
        """
        ...


class RingOutbox:
    """`Outbox` into rings. Holds at most one round that is not yet wholly in them.

    `rings` and `data_bells` are by batch writer.
    """

    def __init__(self, rings: Sequence[Ring], data_bells: Sequence[Bell]) -> None:
        assert len(rings) == len(data_bells), "a bell for each batch writer"
        self._rings = rings
        self._data_bells = data_bells
        self._pending: deque[tuple[int, bytes]] = deque()
        self._round: Round | None = None
        self._put_ns = 0
        self._in_flight = StableQueue()
        self._epoch = 0
        self._begun_at: list[int] = []
        self._expected: list[int] = []

    def begin(self, epoch: int, servers: int = 0) -> None:
        """See `Outbox.begin`."""
        assert epoch >= self._epoch, "a lower epoch would let the writers take what an earlier life left"
        assert self.empty, "the writers would skip what is on its way"
        self._epoch = epoch
        self._begun_at = [ring.written for ring in self._rings]
        self._expected = [ring.took_of(servers) for ring in self._rings]
        for ring, bell in zip(self._rings, self._data_bells, strict=True):
            ring.expected_servers = servers
            ring.awaited = 0
            ring.epoch = epoch
            bell.ring()  # an earlier life may have died between a frame and its bell

    def put(self, taken: Round, epoch: int, group: str) -> None:
        """See `Outbox.put`."""
        assert self._round is None, "the round before is not in the rings yet"
        assert epoch == self._epoch, "the writers would skip it, or take it and what an earlier life left"
        assert len(taken.sections) == len(taken.principals) == len(self._rings), "a part for each batch writer"
        for writer, ring in enumerate(self._rings):
            sections, principals = taken.sections[writer], taken.principals[writer]
            if sections or principals:
                frames = pack_frames(epoch, group, sections, principals, ring.max_payload)
                self._pending.extend((writer, frame) for frame in frames)
        self._round = taken
        self._put_ns = time.monotonic_ns()

    def flush(self) -> bool:
        """See `Outbox.flush`."""
        while self._pending:
            writer, frame = self._pending[0]
            if not self._publish(self._rings[writer], frame):
                return False
            self._pending.popleft()
            if not self._rings[writer].is_awaited(time.monotonic()):
                self._data_bells[writer].ring()
        if self._round is not None:
            positions = [ring.written for ring in self._rings]
            self._in_flight.push(positions, self._round.checkpoints, self._round.n_events, self._put_ns)
            self._round = None
            self._await(self._in_flight.first)
        return True

    def _publish(self, ring: Ring, frame: bytes) -> bool:
        """Publish *frame*, or have each commit wake us; return whether there was room."""
        if ring.try_publish(frame) is not None:
            return True
        self._await([0] * len(self._rings))
        return ring.try_publish(frame) is not None  # a commit before that did not ring

    def _await(self, positions: Sequence[int]) -> None:
        """Have the writers wake us once all of them have committed up to *positions*; see `CommitBell`."""
        for ring, position in zip(self._rings, positions, strict=True):
            ring.awaited = position

    def pop_committed(self) -> dict[int, Checkpoint]:
        """See `Outbox.pop_committed`."""
        committed = [ring.committed for ring in self._rings]
        for writer, ring in enumerate(self._rings):
            if ring.refused == self._epoch:
                raise OwnershipLost(f"epoch {self._epoch}: the store refuses it, a newer one writes the same blocks")
            if committed[writer] > self._begun_at[writer] and ring.took != self._expected[writer]:
                raise OwnershipLost(
                    f"epoch {self._epoch}: batch writer {writer} wrote to other servers of index.store than those in "
                    "which the epoch began"
                )
        popped = self._in_flight.pop_committed(committed)
        if popped and self._in_flight and self._round is None:
            self._await(self._in_flight.first)
        return popped

    @property
    def holds_back(self) -> bool:
        """See `Outbox.holds_back`."""
        return self._round is not None

    def check(self) -> None:
        """Assert what holds after every step of ours, and of the writers."""
        self._in_flight.check()
        assert not self._pending or self._round is not None, "frames are of the round that is handed over"
        assert all(0 <= writer < len(self._rings) for writer, _ in self._pending)
        for ring in self._rings:
            ring.check()
            assert ring.epoch == self._epoch, "the writers take what we put"

    @property
    def n_rounds(self) -> int:
        """See `Outbox.n_rounds`."""
        return len(self._in_flight)

    @property
    def empty(self) -> bool:
        """See `Outbox.empty`."""
        return self._round is None and len(self._in_flight) == 0

    def vbuckets(self) -> set[int]:
        """See `Outbox.vbuckets`."""
        waiting = self._round.checkpoints if self._round is not None else {}
        return self._in_flight.vbuckets().union(waiting)

    @property
    def oldest_ns(self) -> int:
        """See `Outbox.oldest_ns`."""
        return self._in_flight.oldest_ns or (self._put_ns if self._round is not None else 0)

    @property
    def fill_bytes(self) -> int:
        """Bytes that wait in the rings."""
        return sum(ring.fill for ring in self._rings)

    @property
    def capacity_bytes(self) -> int:
        """Bytes that the rings can hold."""
        return sum(ring.capacity for ring in self._rings)

    @property
    def n_events(self) -> int:
        """Events on the way: not yet in the rings, in them, or in a batch."""
        waiting = self._round.n_events if self._round is not None else 0
        return waiting + self._in_flight.n_events
