"""The compactor of a node: looks at all directories now and then, and compacts what is due.

Low priority, a share of a core, and it stops at once: whatever it was in the middle of harms nobody. Every node has
one; which channels of about the same gain it begins with differs from node to node.
"""

import math
import time
import zlib
from collections.abc import Sequence

from channelindex import exits, logs
from channelindex.compaction.channel import ChannelResult
from channelindex.compaction.compactor import Compactor
from channelindex.compaction.due import DueChannel
from channelindex.compaction.pace import Pace
from channelindex.errors import Transient
from channelindex.model import STAR_CHANNEL
from channelindex.settings import CompactionSettings
from channelindex.stores.base import IndexReader
from channelindex.stores.compacting import CompactionStore
from workers.signals import StopFlag
from workers.telemetry.board import ProcessStats

PRUNE_INTERVAL_S = 3600.0
"""Time between two looks at the archives of epochs, which are read for it."""

_BEAT_S = 1.0
"""Longest sleep between two heartbeats."""

_log = logs.get("compactor")


class _Stopped(Exception):
    """The node wants us to end."""


class CompactionWorker:
    """See the module. Opens nothing; owns *store* and *reader* from now on."""

    def __init__(
        self,
        store: CompactionStore,
        reader: IndexReader,
        settings: CompactionSettings,
        block_bytes: int,
        node_name: str,
        stats: ProcessStats,
        stop: StopFlag,
    ) -> None:
        self._store = store
        self._reader = reader
        self._settings = settings
        self._node_name = node_name
        self._stats = stats
        self._stop = stop
        self._pace = Pace(settings.cpu_share, sleep=self._sleep)
        self._compactor = Compactor(store, reader, settings, block_bytes, self._pause)
        self._due_since_ns: dict[str, int] = {}
        self._prune_at = 0.0

    def run(self) -> int:
        """Compact until stopped; return an exit code."""
        try:
            while True:
                try:
                    self._look()
                    self._prune()
                except Transient as error:
                    self._stats.add(store_errors=1)
                    _log.warning("compaction.interrupted", msg=str(error))
                self._sleep(self._settings.interval_s)
        except _Stopped:
            return exits.OK
        finally:
            self._store.close()
            self._reader.close()

    def _look(self) -> None:
        """Compact all that is due now."""
        found = self._compactor.find_due(self._reader.channels(), tidies=True)
        self._stats.add(looks=1)
        sizes = self._compactor.seen
        self._stats.set(channels=sizes.n_channels, index_bytes=sizes.n_bytes, live_bytes=sizes.live_bytes)
        now_ns = time.monotonic_ns()
        self._due_since_ns = {due.channel: self._due_since_ns.get(due.channel, now_ns) for due in found}
        self._report_due()
        for due in in_turn(found, self._node_name):
            if not self._compactor.is_due(due.channel):  # another node was faster
                self._done(due.channel)
                continue
            result = self._compactor.compact(due.channel, due.extent)
            self._note(result)
            if result.outcome in ("damaged", "too large"):
                _log.warning("compaction.skipped", channel=due.channel, msg=f"{result.outcome}: {result.detail}")
            else:
                self._done(due.channel)

    def _prune(self) -> None:
        """Now and then, prune what is needed no more of the archives of epochs."""
        if time.monotonic() < self._prune_at:
            return
        self._prune_at = time.monotonic() + PRUNE_INTERVAL_S
        n_pruned = self._compactor.prune(self._reader.channels)
        if n_pruned:
            _log.info("compaction.pruned", starts=n_pruned)

    def _note(self, result: ChannelResult) -> None:
        outcome = result.outcome
        self._stats.add(
            compacted=int(outcome == "compacted"),
            refused=int(outcome == "refused"),
            skipped=int(outcome in ("damaged", "too large")),
        )
        if outcome == "compacted":
            written = result.bytes_written
            self._stats.add(left_entries=result.counts.left, read_bytes=result.bytes_read, written_bytes=written)

    def _done(self, channel: str) -> None:
        self._due_since_ns.pop(channel, None)
        self._report_due()

    def _report_due(self) -> None:
        oldest_ns = min(self._due_since_ns.values(), default=0)
        self._stats.set(due=len(self._due_since_ns), oldest_due_ns=oldest_ns)

    def _pause(self) -> None:
        self._stats.beat()
        if self._stop.is_set():
            raise _Stopped
        self._pace.pause()

    def _sleep(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left_s := deadline - time.monotonic()) > 0:
            self._stats.beat()
            if self._stop.wait(min(left_s, _BEAT_S)):
                raise _Stopped
        self._stats.beat()


def in_turn(found: Sequence[DueChannel], node_name: str) -> list[DueChannel]:
    """*found* in the order in which this node compacts them: the star channel, then by gain, in steps of twice as much.

    Within a step the order is another one on each node, so that they seldom begin the same channel.
    """

    def order(due: DueChannel) -> tuple[bool, int, int]:
        steps = int(math.log2(max(1, due.gain)))
        return due.channel != STAR_CHANNEL, -steps, zlib.crc32(f"{node_name} {due.channel}".encode())

    return sorted(found, key=order)
