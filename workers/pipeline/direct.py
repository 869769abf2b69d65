"""The feed worker's way out where the index is in its own memory: no rings, no batch writer, no other process."""

import sys
from collections.abc import Sequence
from itertools import count

from channelindex.model import Checkpoint
from channelindex.stores.base import ChannelAppend, IndexWriter
from workers.pipeline.frames import mapping_of
from workers.pipeline.round import Round


class DirectOutbox:
    """`workers.pipeline.outbox.Outbox` that writes each round at once. The builder makes rounds for one writer."""

    n_rounds = n_events = oldest_ns = fill_bytes = capacity_bytes = 0
    """Nothing is ever on its way."""
    empty = True
    holds_back = False

    def __init__(self, store: IndexWriter, part_entries: int) -> None:
        """Append at most *part_entries* of a channel at once; 0 for any number."""
        self._store = store
        self._part_entries = part_entries or sys.maxsize
        self._written: dict[int, Checkpoint] = {}

    def begin(self, epoch: int, servers: int = 0) -> None:
        """See `Outbox.begin`. Nothing of an earlier life is left anywhere."""

    def put(self, taken: Round, epoch: int, group: str) -> None:
        """See `Outbox.put`."""
        assert len(taken.sections) == 1, "the builder makes rounds for one writer"
        left = mapping_of(taken.sections[0])
        for start in count(0, self._part_entries):
            left = {channel: entries for channel, entries in left.items() if len(entries) > start}
            if not left:
                break
            end = start + self._part_entries
            self._store.write([_append(channel, group, epoch, entries[start:end]) for channel, entries in left.items()])
        self._store.write((), taken.principals[0])
        self._written.update(taken.checkpoints)

    def flush(self) -> bool:
        """See `Outbox.flush`: nothing is ever left."""
        return True

    def vbuckets(self) -> set[int]:
        """See `Outbox.vbuckets`: none."""
        return set()

    def pop_committed(self) -> dict[int, Checkpoint]:
        """See `Outbox.pop_committed`: what was written since the last call."""
        written, self._written = self._written, {}
        return written


def _append(channel: str, group: str, epoch: int, entries: Sequence[bytes]) -> ChannelAppend:
    return ChannelAppend(channel, group, epoch, b"".join(entries))
