"""The batch writer: everything of one channel shard, from the rings of all feed workers into the index.

It takes what its rings hold, up to the batch limit, merges it per channel, writes it in one call and commits the
rings. While one batch is written the next one queues up in the rings. A store that fails is asked again with
backoff, the batch kept: nothing is ever dropped to go on. A writer that dies is forked anew, starts at the
committed positions and may write part of a batch twice; readers keep one of each entry.

Where the entries of a batch are of so many channels that hardly two are of one, each is an append of its own, which
costs the store more than anything else does. As long as such batches fill the limit and are written quickly, the next
ones may be several times as large: more of their entries share an append.

What was little is followed by a look after the next beat, when all that the feed workers read at that beat is there.
Only where a look finds nothing, the writer sleeps until its bell rings.
"""

import time
from collections.abc import Sequence
from contextlib import closing
from itertools import chain
from typing import NamedTuple

from channelindex import exits, kernel
from channelindex.backoff import STORE_RETRY_S, Backoff
from channelindex.errors import StoreUnavailable, Transient
from channelindex.logs import EventLog
from channelindex.polling import wait_readable
from channelindex.stores.base import ChannelAppend, IndexWriter
from workers.pipeline.beats import BeatTimer
from workers.pipeline.frames import Merged, merge_payloads
from workers.pipeline.ring import Bell, CommitBell, Ring, TornFrame
from workers.signals import StopFlag
from workers.telemetry.board import BATCH_BYTES, STORE_US, ProcessStats
from workers.telemetry.hot_channels import HotChannels

TORN = 12
"""Exit code: a ring is damaged. No successor can go on with it; the node needs new ones."""

RECONNECT_INTERVAL_S = 0.5
"""Least time between two connections that are made anew because a feed worker knows other servers: each makes the
writer locate all its blocks again."""

GATHER_S = 0.001
MUCH_BYTES = 64 << 10
"""A batch of less waits a moment: the feed workers read at the same beats, so more is on its way."""

MOST_STRETCH = 4
"""Batch limits that one batch may take: with more, rings of the usual size would be empty while it is written."""

SCATTERED_BYTES = 256
"""Entries that share an append have more bytes together, five usual ones: larger batches gain little then."""

STRETCHED_S = 0.5
"""Longest time that a batch of more than the limit is expected to take: the heartbeat waits for it, and whoever waits
until the store has it."""

MAX_WAIT_S = 0.25
"""Longest sleep: the heartbeat must not look dead while there is nothing to write."""


class Batch(NamedTuple):
    """Sums up what was written and committed at once: *took_s* with all repetitions, *store_us* the successful one."""

    merged: Merged
    took_s: float
    store_us: int | None


class BatchWriter:
    """Runs one life of the batch writer of one channel shard. `run` in a process of its own; not reusable.

    `rings` and `commit_bells` are by feed worker.
    """

    def __init__(
        self,
        *,
        store: IndexWriter,
        rings: Sequence[Ring],
        commit_bells: Sequence[CommitBell],
        data_bell: Bell,
        batch_bytes: int,
        stats: ProcessStats,
        hot_channels: HotChannels,
        stop: StopFlag,
        log: EventLog,
    ) -> None:
        self._store = store
        self._rings = rings
        self._commit_bells = commit_bells
        self._data_bell = data_bell
        assert len(rings) == len(commit_bells) > 0, "a bell for each feed worker"
        assert batch_bytes > 0
        self._ring_budget = max(1, batch_bytes // len(rings))
        self._stretch = 1
        """Batch limits that the next batch may take."""
        self._stats = stats
        self._hot_channels = hot_channels
        self._stop = stop
        self._log = log
        self._backoff = Backoff(*STORE_RETRY_S)
        self._compiled = kernel.chosen()
        self._stale_epochs: set[int] = set()
        self._servers = 0
        """Digest of the servers that the last batch was written to; 0 before the first."""
        self._reconnect_at = 0.0
        self._looks_at_beats = False

    def run(self) -> int:
        """Write until asked to stop and the rings are empty; return the exit code of the process."""
        for ring, bell in zip(self._rings, self._commit_bells, strict=True):
            ring.reset_consumer()
            bell.ring()  # the one before us may have died between its commit and its bell
        with closing(BeatTimer()) as timer:
            return self._work(timer)

    def _work(self, timer: BeatTimer) -> int:
        while True:
            self._stats.beat()
            self._hot_channels.publish_if_due(time.monotonic())
            try:
                batch = self._write_batch()
            except TornFrame as error:
                self._log.error("batch.ring_torn", msg=str(error))
                return TORN
            if batch is not None and self._count(batch):
                continue  # what came meanwhile has rung before we wait, and need not wake us
            if self._stop.is_set():
                return exits.OK
            is_little = batch is not None and batch.merged.n_bytes < MUCH_BYTES
            if is_little or not self._looks_at_beats:
                self._look_at_beats(timer, looks=is_little)
                self._wait(timer)
            else:
                self._look_at_beats(timer, looks=False)  # and once more: what came before that has not rung

    def _write_batch(self) -> Batch | None:
        """Write and commit all that the rings hold now, within the batch limit; None if they hold nothing."""
        taken = [self._take(ring) for ring in self._rings]
        if not any(taken):
            return None
        self._reconnect_if_expected(taken)
        epochs = [ring.epoch for ring in self._rings]
        n_taken = sum(map(len, chain(*taken)))
        merged = merge_payloads(zip(epochs, taken, strict=True), self._stale_epochs, self._compiled)
        began = time.monotonic()
        store_us = self._write(merged.appends, merged.principals)
        took_s = time.monotonic() - began
        self._stretch = self._stretch_after(n_taken, merged, took_s)
        for ring, payloads, bell in zip(self._rings, taken, self._commit_bells, strict=True):
            assert not payloads or ring.committed < ring.read, "what was taken is committed once, after it was written"
            if payloads:
                self._commit(ring, bell)
        return Batch(merged, took_s, store_us)

    def _stretch_after(self, n_taken: int, merged: Merged, took_s: float) -> int:
        """Return how many batch limits the next batch may take after one of *n_taken* bytes of the rings."""
        assert 1 <= self._stretch <= MOST_STRETCH
        is_scattered = merged.n_bytes < SCATTERED_BYTES * len(merged.appends)
        if not is_scattered or took_s > STRETCHED_S:
            return max(1, self._stretch // 2)
        is_full = 2 * n_taken >= self._stretch * self._ring_budget * len(self._rings)
        return min(MOST_STRETCH, 2 * self._stretch) if is_full and 2 * took_s < STRETCHED_S else self._stretch

    def _count(self, batch: Batch) -> int:
        """Publish what was written; return the bytes that have come meanwhile."""
        fill = self._fill()
        appends, _, n_frames, n_bytes, largest = batch.merged
        if batch.store_us is not None:
            self._stats.observe(STORE_US, batch.store_us)
        self._stats.observe(BATCH_BYTES, n_bytes)
        self._hot_channels.add(largest, n_bytes, batch.took_s)
        self._stats.add(batches=1, frames=n_frames, channels=len(appends), entry_bytes=n_bytes)
        self._stats.set(ring_fill=fill, block_lookups=self._store.n_block_lookups)
        return fill

    def _take(self, ring: Ring) -> list[memoryview]:
        """The next payloads of *ring*; none as long as its epoch is one that the store refused."""
        if ring.refused and ring.epoch <= ring.refused:
            return []
        return ring.take(self._stretch * self._ring_budget)

    def _commit(self, ring: Ring, bell: CommitBell) -> None:
        """Commit what was taken, unless the ring's present epoch was refused: then its worker has to begin anew."""
        if ring.epoch in self._stale_epochs:
            ring.refuse(ring.epoch)
            bell.ring()
        else:
            ring.commit(self._servers)
            bell.ring_if_awaited()

    def _reconnect_if_expected(self, taken: Sequence[Sequence[memoryview]]) -> None:
        """Connect to the store anew if a feed worker knows other servers of it than we do. It may be wrong: once."""
        expected = {ring.expected_servers for ring, payloads in zip(self._rings, taken, strict=True) if payloads}
        if not self._servers or self._servers in expected or not any(expected):
            return
        now = time.monotonic()
        if now >= self._reconnect_at:
            self._reconnect_at = now + RECONNECT_INTERVAL_S
            self._log.info("batch.reconnected", msg="a feed worker knows other servers of index.store")
            self._store.reconnect()

    def _write(self, appends: Sequence[ChannelAppend], principals: Sequence[str]) -> int | None:
        """Ask the store until it has everything; return the µs of the call that succeeded, None where nothing was.

        A batch that is half written when we are killed is written again.
        """
        while appends or principals:
            began_ns = time.monotonic_ns()
            try:
                self._servers = self._store.servers()
                stale = self._store.write(appends, principals)
                if self._store.servers() != self._servers:
                    raise StoreUnavailable("index.store moved to other servers while a batch was written")
            except Transient as error:
                delay_s = self._backoff.next_delay_s()
                self._stats.add(store_errors=1)
                failures = self._backoff.failures
                self._log.warning("batch.write_failed", msg=str(error), failures=failures, retry_s=round(delay_s, 2))
                self._sleep(delay_s)
                continue
            assert all(epoch > 0 for epoch in stale), "the store refuses epochs that have begun"
            took_us = (time.monotonic_ns() - began_ns) // 1000
            if stale:
                self._stale_epochs |= stale
                self._log.warning("batch.stale_epochs", epochs=sorted(stale))
            if self._backoff.failures:
                self._log.info("batch.write_recovered", failures=self._backoff.failures)
                self._backoff.reset()
            return took_us
        return None

    def _sleep(self, delay_s: float) -> None:
        """Wait for the store to recover; the heartbeat goes on."""
        while delay_s > 0:
            self._stats.beat()
            time.sleep(min(delay_s, MAX_WAIT_S))
            delay_s -= MAX_WAIT_S

    def _look_at_beats(self, timer: BeatTimer, *, looks: bool) -> None:
        """Look after each beat from now on, or no more."""
        if looks != self._looks_at_beats:
            self._looks_at_beats = looks
            timer.clear()  # the looks that were due before
            for ring in self._rings:
                ring.look_at_beats(looks=looks)

    def _wait(self, timer: BeatTimer) -> None:
        """Sleep until there is something to write, or may be.

        While the bell alone wakes us and that is for little, sleep a moment more for what comes with it.
        """
        if self._looks_at_beats:
            wait_readable([self._data_bell, self._stop, timer], MAX_WAIT_S)
            timer.clear()
        elif wait_readable([self._data_bell, self._stop], MAX_WAIT_S) and self._fill() < MUCH_BYTES:
            wait_readable([self._stop], GATHER_S)
        self._data_bell.clear()  # before looking: what comes after this rings it again

    def _fill(self) -> int:
        return sum(ring.fill for ring in self._rings)
