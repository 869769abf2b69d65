"""Rounds on their way through the rings: which checkpoints may become stable, given what the writers committed."""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from channelindex.model import Checkpoint


class _InFlight(NamedTuple):
    positions: tuple[int, ...]
    checkpoints: dict[int, Checkpoint]
    n_events: int
    put_ns: int


class StableQueue:
    """A first-in first-out queue of (ring positions, checkpoints), one item per round.

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
        self.n_events += n_events
        last = self._queue[-1] if self._queue else None
        if last and last.positions == tuple(positions):
            self._queue[-1] = last._replace(
                checkpoints={**last.checkpoints, **checkpoints}, n_events=last.n_events + n_events
            )
        else:
            self._queue.append(_InFlight(tuple(positions), checkpoints, n_events, put_ns))

    def pop_committed(self, committed: Sequence[int]) -> dict[int, Checkpoint]:
        """The newest checkpoint of each vbucket among the rounds that all writers have *committed*; they leave."""
        newest: dict[int, Checkpoint] = {}
        while self._queue and all(
            position <= done for position, done in zip(self._queue[0].positions, committed, strict=True)
        ):
            item = self._queue.popleft()
            newest.update(item.checkpoints)
            self.n_events -= item.n_events
        return newest

    def vbuckets(self) -> set[int]:
        """The vbuckets of the rounds in the queue."""
        return {vb for item in self._queue for vb in item.checkpoints}

    @property
    def oldest_ns(self) -> int | None:
        """When the first round in the queue was made; None for an empty queue."""
        return self._queue[0].put_ns if self._queue else None

    def __len__(self) -> int:
        return len(self._queue)
