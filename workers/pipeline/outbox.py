"""The feed worker's way out: rounds into ring frames, frames into rings, and what of them has been committed."""

import time
from collections import deque
from collections.abc import Sequence

from channelindex.model import Checkpoint
from workers.pipeline.frames import pack_frames
from workers.pipeline.ring import Bell, Ring
from workers.pipeline.round import Round
from workers.pipeline.stable_queue import StableQueue


class Outbox:
    """Holds at most one round that is not yet wholly in the rings. `rings` and `data_bells` are by batch writer."""

    def __init__(self, rings: Sequence[Ring], data_bells: Sequence[Bell]) -> None:
        self._rings = rings
        self._data_bells = data_bells
        self._pending: deque[tuple[int, bytes]] = deque()
        self._round: Round | None = None
        self._put_ns = 0
        self._in_flight = StableQueue()

    def begin(self, epoch: int) -> None:
        """From here on the writers skip whatever an earlier life left in the rings."""
        for ring, bell in zip(self._rings, self._data_bells, strict=True):
            ring.epoch = epoch
            bell.ring()  # an earlier life may have died between a frame and its bell

    def put(self, taken: Round, epoch: int, group: str) -> None:
        """Take a round over. Only when the one before is in the rings (`flush` returned True)."""
        assert self._round is None, "the round before is not in the rings yet"
        for writer, ring in enumerate(self._rings):
            sections, principals = taken.sections[writer], taken.principals[writer]
            if sections or principals:
                frames = pack_frames(epoch, group, sections, principals, ring.max_payload)
                self._pending.extend((writer, frame) for frame in frames)
        self._round = taken
        self._put_ns = time.monotonic_ns()

    def flush(self) -> bool:
        """Move frames into the rings as far as there is room; whether none is left."""
        while self._pending:
            writer, frame = self._pending[0]
            if self._rings[writer].try_publish(frame) is None:
                return False
            self._data_bells[writer].ring()
            self._pending.popleft()
        if self._round is not None:
            positions = [ring.written for ring in self._rings]
            self._in_flight.push(positions, self._round.checkpoints, self._round.n_events, self._put_ns)
            self._round = None
        return True

    def pop_committed(self) -> dict[int, Checkpoint]:
        """The newest checkpoints, by vbucket, that the index now holds everything for."""
        return self._in_flight.pop_committed([ring.committed for ring in self._rings])

    @property
    def n_rounds(self) -> int:
        """Rounds that are in the rings and not yet committed by every writer."""
        return len(self._in_flight)

    @property
    def empty(self) -> bool:
        """Whether everything that was put has been committed by every writer."""
        return self._round is None and len(self._in_flight) == 0

    def vbuckets(self) -> set[int]:
        """The vbuckets of what was put and is not yet committed by every writer."""
        waiting = self._round.checkpoints if self._round is not None else {}
        return self._in_flight.vbuckets().union(waiting)

    @property
    def oldest_ns(self) -> int:
        """Since when the oldest round waits that is not committed by every writer (monotonic); 0 where none does."""
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
