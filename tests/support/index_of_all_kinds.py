"""An index that has a key, or a document, of every kind that its store keeps: for tests that take one of them away."""

from channelindex.reading.changes_reader import ChangesReader
from channelindex.stores.base import Quarantined
from tests.support.stores import GROUP, META, Backend, append, checkpoints, entry

CHANNEL = "orders"
BLOCK_BYTES = 200
USER = "_sync:user:ann"
DOCUMENT = Quarantined(0, 3, b"doc", "why", 1.0)
PARTITIONS = range(META.n_partitions)


class IndexOfAllKinds:
    """An index of a channel of several blocks, with archives, a timeline, a user and a quarantined document."""

    def __init__(self, backend: Backend) -> None:
        self.owner = backend.owner()
        self.owner.create_or_check(META)
        self.reader = backend.reader()
        self.writer = backend.writer(BLOCK_BYTES)
        self.n_written = 0
        for _ in range(3):
            self.begin()
            for _ in range(4):
                self.write()
        self.owner.quarantine([DOCUMENT])

    def begin(self) -> None:
        self.epoch = self.owner.next_epoch()
        self.owner.begin_all({partition: {} for partition in PARTITIONS}, self.epoch, "n1")

    def write(self) -> None:
        """One document more, until it is stable and its moment noted."""
        self.n_written += 1
        document = entry(0, self.n_written, key=f"{self.n_written:050}")
        self.writer.write([append(CHANNEL, self.epoch, document)], [USER])
        self.owner.advance(self.epoch, checkpoints({0: self.n_written}))
        self.owner.note_moments(self.epoch, PARTITIONS, float(self.n_written))

    def read(self) -> list[int]:
        """The seqnos that a new reader gets."""
        return [each.seqno for each in ChangesReader(self.reader).changes([CHANNEL]).entries]

    def active_number(self) -> int:
        """The number of the channel's active block: there are others before it."""
        (state,) = self.reader.channel_states([CHANNEL])
        assert state is not None
        number = state.groups[GROUP].directory.number
        assert number > 1, "there are blocks before the active one"
        return number
