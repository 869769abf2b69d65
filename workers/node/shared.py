"""The memory and the bells that a node's workers share. Made before the first fork; a new shape needs all anew."""

from workers.pipeline.ring import Bell, CommitBell, Ring


class Shared:
    """Holds rings and bells of a node with *n_feeds* feed workers and *n_writers* batch writers.

    `rings[feed][writer]` leads from one to the other. `space_bells[feed]` wakes a feed worker for commits and room,
    `data_bells[writer]` a batch writer of frames.
    """

    def __init__(self, n_feeds: int, n_writers: int, ring_bytes: int) -> None:
        assert n_feeds > 0
        assert n_writers > 0
        self.n_feeds = n_feeds
        self.n_writers = n_writers
        self.rings = [[Ring(ring_bytes) for _ in range(n_writers)] for _ in range(n_feeds)]
        self.space_bells = [Bell() for _ in range(n_feeds)]
        self.data_bells = [Bell() for _ in range(n_writers)]

    @property
    def bells(self) -> list[Bell]:
        """All bells: what a worker must keep open over the fork."""
        return [*self.space_bells, *self.data_bells]

    def rings_of_writer(self, writer: int) -> list[Ring]:
        """Return the rings that lead to one batch writer, by feed worker."""
        assert 0 <= writer < self.n_writers
        return [by_writer[writer] for by_writer in self.rings]

    @property
    def commit_bells(self) -> list[CommitBell]:
        """The space bells, by feed worker, as batch writers ring them."""
        return [CommitBell(bell, rings) for bell, rings in zip(self.space_bells, self.rings, strict=True)]

    def close(self) -> None:
        """Give the bells back; the memory goes with its last process."""
        for bell in self.bells:
            bell.close()
