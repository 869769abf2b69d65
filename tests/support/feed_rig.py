"""A feed worker whose source the test plays, with a ring to a writer that the test plays too."""

from itertools import takewhile
from typing import cast

from channelindex import blocks
from channelindex.errors import StoreUnavailable
from channelindex.feeds.base import MUTATION, SNAPSHOT
from channelindex.logs import get
from channelindex.model import IndexMeta, Route
from channelindex.stores.memory import MemoryIndex, MemoryOwner
from workers.pipeline.assignment import assignment_link
from workers.pipeline.feed_worker import FeedWorker, ReadPace
from workers.pipeline.frames import decode_frame
from workers.pipeline.outbox import RingOutbox
from workers.pipeline.ring import Bell, Ring
from workers.pipeline.round import RoundBuilder
from workers.signals import StopFlag
from workers.telemetry.board import Board

META = IndexMeta(blocks.FORMAT_VERSION, n_vbuckets=8, n_partitions=4, source_uuid="s", index_uuid="i")


class FakeFeed:
    """Gives the events that the test puts into it; knows which vbuckets it is to stream, and from where."""

    def __init__(self):
        self.events = []
        self.streams = {}
        self.n_reads = 0
        self.n_bytes = 0
        self.n_ticks = 0
        self.asks_for_ticks = True
        self._bell = Bell()

    def start(self, checkpoints):
        self.streams = {vb: checkpoint.seqno for vb, checkpoint in checkpoints.items()}

    def add(self, checkpoints):
        assert not self.streams.keys() & checkpoints.keys()
        self.streams |= {vb: checkpoint.seqno for vb, checkpoint in checkpoints.items()}

    def drop(self, vbuckets):
        for vb in vbuckets:
            del self.streams[vb]

    def read(self, max_bytes):
        self.n_reads += 1
        taken, self.events = self.events, []
        return taken

    def fileno(self):
        return self._bell.fileno()

    def tick(self, now):
        self.n_ticks += 1
        return now if self.asks_for_ticks else float("inf")

    def read_bytes(self):
        return self.n_bytes

    def high_seqnos(self):
        return {}

    def connected(self):
        return True

    def acknowledge(self):
        pass

    def close(self):
        self._bell.close()


class Everything:
    """A decoder that puts every document into one channel."""

    def decode(self, kind, key, datatype, value):
        return Route("1-a", 0, 0, {"A": None})


class NeverStop(Bell):
    """Nobody tells this worker to stop."""

    def is_set(self):
        return False


class UnwillingOwner(MemoryOwner):
    """Begins no epoch of the partitions in `refused`, but of those that are asked for before them."""

    def __init__(self, index, index_name):
        super().__init__(index, index_name)
        self.refused = set()
        self.error = StoreUnavailable("away")

    def begin_all(self, rollbacks, epoch, owner, only_if=None):
        willing = dict(takewhile(lambda item: item[0] not in self.refused, rollbacks.items()))
        begun = super().begin_all(willing, epoch, owner, only_if)
        if len(willing) < len(rollbacks):
            raise self.error
        return begun


class FeedRig:
    """A worker with a ring to a writer that the test plays."""

    def __init__(self, partitions, feed=None):
        self.index = MemoryIndex()
        self.owner = UnwillingOwner(self.index, "test")
        self.owner.create_or_check(META)
        self.feed = feed or FakeFeed()
        self.ring = Ring(1 << 16)
        self.bells = Bell(), Bell()
        self.outbox = RingOutbox([self.ring], [self.bells[0]])
        self.ours, self.its = assignment_link(frozenset(partitions))
        board = Board(META.n_partitions)
        self.worker = FeedWorker(
            owner="n1",
            partitions=partitions,
            meta=META,
            store=self.owner,
            feed=self.feed,
            new_builder=lambda checkpoints: RoundBuilder(Everything(), 1, checkpoints),
            outbox=self.outbox,
            space_bell=self.bells[1],
            stats=board.feeds[0],
            rows=board.partitions,
            stop=cast("StopFlag", NeverStop()),
            assignment=self.its,
            log=get("test"),
        )
        self.worker._pace = ReadPace(beat_s=0.0)
        checkpoints = self.worker._begin_epochs()
        assert checkpoints is not None
        self.worker._start(checkpoints)

    def brings(self, vb, seqno, key=b"key"):
        """The source has one more change, in a snapshot of its own."""
        self.feed.events += [(SNAPSHOT, vb, seqno, seqno), (MUTATION, vb, seqno, key, 1, b"{}")]

    def turn(self, n=1, *, advances=True):
        """Turns of the worker, in which moving the stable clock is due or not."""
        for _ in range(n):
            self.worker._advance_at = 0.0 if advances else float("inf")
            self.worker._joiner.retry_at = 0.0
            self.worker._turn()
            self.worker.check()
            self.outbox.check()
            self.ours.poll()

    def indexes(self, vb, seqno):
        """Whether what comes now is stable once it is written."""
        self.brings(vb, seqno)
        self.turn()
        self.write()
        self.turn()
        partition = vb // META.partition_width
        return self.record(partition).stable[vb % META.partition_width] == seqno

    def write(self):
        """The writer writes and commits all that is in the ring; the frames."""
        frames = [decode_frame(payload) for payload in self.ring.take(1 << 20)]
        if frames:
            self.ring.commit()
        return frames

    def record(self, partition):
        return self.index.records[partition]

    def close(self):
        self.feed.close()
        self.ours.close()
        self.its.close()
        for bell in self.bells:
            bell.close()
