"""The feed worker: one vbucket group's changes, from the source into the rings, and the stable clock behind them.

One process per group, one epoch at a time. It begins the epoch of each of its partitions, streams from their
checkpoints, and seals what it reads into rounds. While the rings are full it goes on reading into the next round, but
acknowledges nothing, so flow control bounds what it holds and the connection stays alive. As soon as every batch
writer has committed a round, its checkpoints are advanced. A rollback of the source is a new epoch and a new life.

Its partitions may change while it works. One that goes has its streams closed; when all that came of it is stable, it
is let go, and the others do not notice. One that comes is begun in the next epoch, while the others go on in theirs.
Then all have to come into it where everything that was read is stable, so that no entry of the epoch before is taken
back. Nothing is read meanwhile, for as long as it takes a round to get into the index; no stream is reopened.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from channelindex import exits
from channelindex.backoff import STORE_RETRY_S, Backoff
from channelindex.epochs import PartitionRecord
from channelindex.errors import OwnershipLost, StaleEpoch, Transient
from channelindex.feeds.base import Feed
from channelindex.hashing import group_of
from channelindex.logs import EventLog
from channelindex.model import Checkpoint, IndexMeta
from channelindex.polling import wait_readable
from channelindex.stores.base import OwnerStore, Quarantined
from workers.pipeline.assignment import Assignment
from workers.pipeline.beats import BEAT_S
from workers.pipeline.join_epoch import PartitionJoin, no_rollbacks
from workers.pipeline.lag import LagReport
from workers.pipeline.outbox import Outbox
from workers.pipeline.ownership import Ownership
from workers.pipeline.quarantine_log import QuarantineLog
from workers.pipeline.ring import Bell
from workers.pipeline.round import Round, RoundBuilder
from workers.signals import StopFlag
from workers.telemetry.board import ProcessStats, Row

ROLLED_BACK = 10
"""Exit code: the partitions were rolled back in a new epoch; fork a new worker at once."""
STALE = 11
"""Exit code: a newer epoch of one of our partitions exists; we own it no more, or no longer alone."""
REWOUND = 14
"""Exit code: an operator's command took a partition of ours back; fork a new worker at once."""

READ_BYTES = 1 << 20
"""Input per turn: more would delay heartbeats."""
BUSY_ROUNDS = 2
ROUND_EVENTS = 8_000
"""While the writers have that many rounds to write, the next one grows, up to so many events. A channel costs once per
round, and a writer that is busy gains nothing from getting its work in crumbs."""
LARGE_ROUND_EVENTS = 1_000
LARGE_ROUND_S = 0.04
"""A round of so many events grows, too, for so long since its first one, as long as each read brings much: less than a
change waits where little comes. What has just arrived is a crumb as well where the source is no faster than we are."""
GROW_S = 0.002
"""A round that grows is read for again after so long: what comes meanwhile is one read. A source whose window is
128 KiB sends 65 MB/s then."""
MUCH_EVENTS = 200
LARGE_EVENT_BYTES = 2 << 10
MUCH_BYTES = 64 << 10
"""A read of as many events, or of so many bytes of events that are large on average, is worth its cost, and more is on
its way: the next one follows at once."""
FIRST_WAIT_S = 0.001
"""Time from the first read that brings little to the next one, where events are large; twice that after each further
one."""
LOOK_INTERVAL_S = 0.25
"""While all reads bring changes, time between two looks at orders, and at what else a feed has to do: lost streams,
moved vbuckets."""
ADVANCE_INTERVAL_S = 0.02
"""Least time between two moves of the stable clock: without it a fast feed would spend its time on them."""
BUSY_ADVANCE_DELAY_S = 0.18
"""So much more while the writers have BUSY_ROUNDS to write: what is read waits longer for them than for that."""
EPOCH_CHECK_S = 1.0
"""Interval of the check that our epochs are still current. A feed that has nothing to advance would not notice that an
operator rewound its partitions, or that the store may have lost what we wrote."""
ROLLBACK_GATHER_S = 0.3
"""After a first rollback, how long to wait for those of other vbuckets: a failover takes back many at once."""
MAX_QUARANTINED = 1_000
"""Undecodable documents that wait for the store; as many as it keeps. Older ones are counted, not listed."""
LAG_INTERVAL_S = 0.5
MAX_WAIT_S = 0.25
"""Longest sleep: the heartbeat must not look dead on an idle feed."""


def _nobody(partition: int) -> str:  # noqa: ARG001 - the signature of what it stands for
    return ""


class ReadPace:
    """Says when the next read is due, in seconds of the monotonic clock: at once after much, or after a quiet time.

    Each read becomes a round, each round a frame for every batch writer, calls of the store and a move of the stable
    clock. That is much for one document. So what comes within a *beat* of a feed that brings little becomes one round.
    All workers of a machine read at the same beats: a batch writer gets the frames of all of them in one batch.

    Few large documents may be all that fitted into the source's window: it waits for us to read on, and the beat would
    set its pace. So after them the next read is soon, and each further one later, until much comes again.
    """

    def __init__(self, beat_s: float = BEAT_S) -> None:
        assert beat_s >= 0
        self._beat_s = beat_s
        self._wait_s = math.inf
        """Time to the next read after one that brings little, unless a beat comes before."""
        self.read_at = 0.0

    def note(self, now: float, n_events: int, n_bytes: int) -> None:
        """So many events were read *now*, from so many bytes of input."""
        are_large = n_bytes >= max(MUCH_BYTES, n_events * LARGE_EVENT_BYTES)
        if n_events >= MUCH_EVENTS or are_large or not self._beat_s:
            self.read_at, self._wait_s = now, FIRST_WAIT_S if are_large else math.inf
        elif n_events:
            self.read_at = min((now // self._beat_s + 1) * self._beat_s, now + self._wait_s)
            self._wait_s *= 2


class FeedWorker:
    """Runs one life of the feed worker of one vbucket group. `run` in a process of its own; not reusable."""

    def __init__(
        self,
        *,
        owner: str,
        partitions: Sequence[int],
        meta: IndexMeta,
        store: OwnerStore,
        feed: Feed,
        new_builder: Callable[[Mapping[int, Checkpoint]], RoundBuilder],
        outbox: Outbox,
        space_bell: Bell,
        stats: ProcessStats,
        rows: Sequence[Row],
        stop: StopFlag,
        assignment: Assignment,
        log: EventLog,
        requested_by: Callable[[int], str] = _nobody,
    ) -> None:
        """*requested_by* names the command that began the present epoch of a partition; "" where a node did."""
        assert all(0 <= partition < meta.n_partitions for partition in partitions)
        self._owner = owner
        self._ownership = Ownership(partitions)
        self._joiner = PartitionJoin(self._ownership, store, owner, stats, log)
        self._assignment = assignment
        self._meta = meta
        self._store = store
        self._feed = feed
        self._new_builder = new_builder
        self._outbox = outbox
        self._space_bell = space_bell
        self._stats = stats
        self._width = meta.partition_width
        self._lag = LagReport(rows, self._width)
        self._stop = stop
        self._log = log
        self._requested_by = requested_by
        self._group = group_of(sorted(partitions), meta.n_partitions)
        self._unadvanced: dict[int, Checkpoint] = {}
        self._quarantined: list[Quarantined] = []
        self._quarantine_log = QuarantineLog(log)
        self._backoff = Backoff(*STORE_RETRY_S)
        self._pace = ReadPace()
        self._tick_at = 0.0
        self._look_again_at = 0.0
        self._round_until = 0.0
        """Time until which a large round may grow (monotonic)."""
        self._has_read = False
        """True if the last read brought something."""
        self._advance_at = 0.0
        self._check_at = 0.0
        self._note_at = 0.0
        self._is_noted = False
        self._report_at = 0.0
        self._stable: dict[int, int] = {}

    def run(self) -> int:
        """Work until asked to stop, then drain; return the exit code of the process."""
        try:
            checkpoints = self._begin_epochs()
            if checkpoints is None:
                return exits.OK
            self._start(checkpoints)
            while not self._stop.is_set():
                self._turn()
                if self._rollback_due():
                    return self._roll_back()
            self._drain()
        except OwnershipLost as error:
            return self._lost(error)
        finally:
            self._feed.close()
        return exits.OK

    def _lost(self, error: OwnershipLost) -> int:
        """Log why a partition is ours no more; return the exit code."""
        command = self._requested_by(error.partition) if isinstance(error, StaleEpoch) else ""
        if command:
            self._log.info("feed.rewound", epoch=self._ownership.epoch, msg=command)
            return REWOUND
        self._log.warning("feed.ownership_lost", epoch=self._ownership.epoch, msg=str(error))
        return STALE

    def _begin_epochs(self) -> dict[int, Checkpoint] | None:
        """Begin one epoch for all partitions; return where to resume each vbucket, None if asked to stop before."""
        while not self._stop.is_set():
            self._stats.beat()
            try:
                self._ownership.epoch = self._store.next_epoch()
                records = self._store.begin_all(no_rollbacks(self._ownership.owned), self._ownership.epoch, self._owner)
            except Transient as error:
                delay_s = self._backoff.next_delay_s()
                failures = self._backoff.failures
                self._log.warning("feed.begin_failed", msg=str(error), failures=failures, retry_s=round(delay_s, 2))
                self._stop.wait(delay_s)
            else:
                assert len(records) == len(self._ownership.owned), "a record of each partition"
                assert all(record.epoch == self._ownership.epoch for record in records), "ours, and no other"
                return _checkpoints(records)
        return None

    def _start(self, checkpoints: Mapping[int, Checkpoint]) -> None:
        epoch = self._ownership.epoch
        assert epoch > 0
        assert checkpoints.keys() == self._vbuckets_of(self._ownership.owned)
        self._backoff.reset()
        self._stable = {vb: checkpoint.seqno for vb, checkpoint in checkpoints.items()}
        self._builder = self._new_builder(checkpoints)
        self._outbox.begin(epoch, self._store.servers())
        self._stats.set(epoch=epoch)
        self._feed.start(checkpoints)
        self._log.info("feed.started", epoch=epoch, group=self._group, partitions=len(self._ownership.owned))

    def _turn(self) -> None:
        now = time.monotonic()
        self._stats.beat()
        lingers = self._lingers(now)
        if not lingers and self._looks_around(now):
            self._tick_at = self._feed.tick(now)
            self._look_again_at = now + LOOK_INTERVAL_S
            self._take_assignment(now)
        is_paused = self._ownership.is_paused
        reads = not (is_paused or lingers)
        has_read, taken = self._move_changes(now, reads=reads)
        self._has_read = has_read if reads else self._has_read
        if taken is not None:
            self._count(taken)
        self._follow_assignment(now)
        self._report(now)
        resumes = is_paused and not self._ownership.is_paused
        if not resumes and (not has_read or self._pace.read_at > now):
            self._wait(now)

    def _lingers(self, now: float) -> bool:
        """Return true if there is nothing to do before the next beat but to move the stable clock."""
        return self._pace.read_at > now and not self._ownership.is_paused

    def _looks_around(self, now: float) -> bool:
        """Return whether to see what the feed has to do, and for orders; not each time while reads bring changes."""
        is_due = now >= min(self._tick_at, self._look_again_at)
        return is_due or self._ownership.is_paused or not self._has_read

    def _move_changes(self, now: float, *, reads: bool) -> tuple[bool, Round | None]:
        """Move changes on by one step each: from the source into a round, into the rings, under the stable clock.

        Returns:
            Whether something was read, and the round that went to the rings, if one did.

        Raises:
            StaleEpoch: somebody else owns one of the partitions.
        """
        events = self._feed.read(READ_BYTES) if reads else ()
        if events:
            if not self._builder.n_events:
                self._round_until = now + LARGE_ROUND_S
            self._pace.note(now, len(events), self._feed.read_bytes())
            self._builder.add(events)
        taken = self._hand_over(grows=self._grows(now))
        self._advance(now)
        self._note_moments(now)
        return bool(events), taken

    def _count(self, taken: Round) -> None:
        """Publish that a round went to the rings."""
        self._stats.add(events=taken.n_events, entries=taken.n_entries, quarantined=len(taken.quarantined))
        self._quarantine_log.note(taken.quarantined)

    def _take_assignment(self, now: float) -> None:
        """Take over what the supervisor assigned: stop reading what is not ours any more, begin what is new."""
        assigned = self._assignment.newest()
        if assigned is not None:
            self._ownership.assign(assigned)
        if self._builder.rollback_since is not None:  # a new life takes over anyway
            return
        leaving = self._ownership.leave_unassigned()
        if leaving:
            self._feed.drop(self._vbuckets_of(leaving))
        self._joiner.begin(now)

    def _follow_assignment(self, now: float) -> None:
        """Let go of what is all stable; join what comes, once everything is; report to the supervisor.

        Raises:
            StaleEpoch: somebody else owns one of the partitions.
        """
        if self._ownership.leaving:
            self._let_go()
        if self._ownership.is_paused and self._is_idle:
            self._join(now)
        if self._ownership.report_due and self._assignment.report(self._ownership.working):
            self._ownership.report_due = False

    def _vbuckets_of(self, partitions: Iterable[int]) -> set[int]:
        return {vb for partition in partitions for vb in self._meta.vbuckets_of(partition)}

    @property
    def _is_idle(self) -> bool:
        """True if everything that was read is in the index and stable."""
        nothing_read = self._builder.n_events == 0
        return nothing_read and self._outbox.empty and not self._unadvanced and not self._quarantined

    def _let_go(self) -> None:
        """Forget the leaving partitions of which nothing is in flight any more: read, in the rings, or not stable."""
        unsettled = self._outbox.vbuckets().union(self._unadvanced)

        def is_settled(partition: int) -> bool:
            vbuckets = self._vbuckets_of([partition])
            return vbuckets.isdisjoint(unsettled) and not self._builder.holds_any(vbuckets)

        gone = self._ownership.settle(is_settled)
        if gone:
            vbuckets = self._vbuckets_of(gone)
            self._builder.forget(vbuckets)
            self._stable = {vb: seqno for vb, seqno in self._stable.items() if vb not in vbuckets}
            self._log.info("feed.released", epoch=self._ownership.epoch, partitions=sorted(gone))

    def _join(self, now: float) -> None:
        """Move all that we own into the epoch of what comes, and work on both. Nothing of ours is in flight."""
        assert self._is_idle, "what is in flight would be dead above the start of the next epoch"
        records = self._joiner.join(now)
        if records is None:
            return
        epoch, checkpoints = self._ownership.epoch, _checkpoints(records)
        assert self._stable.keys().isdisjoint(checkpoints), "what comes was not here"
        # The group is named anew: whoever may use the same name elsewhere must own all that we write to it.
        self._group = group_of(sorted(self._ownership.owned), self._meta.n_partitions)
        self._stable.update((vb, checkpoint.seqno) for vb, checkpoint in checkpoints.items())
        self._builder.begin(checkpoints)
        self._outbox.begin(epoch, self._store.servers())
        self._is_noted = False
        self._stats.set(epoch=epoch)
        self._feed.add(checkpoints)
        partitions = sorted(record.first_vb // self._width for record in records)
        self._log.info("feed.joined", epoch=epoch, group=self._group, partitions=partitions)

    def check(self) -> None:
        """Assert what holds after every turn."""
        self._ownership.check()
        owned = self._vbuckets_of(self._ownership.owned)
        assert self._stable.keys() == owned
        assert self._outbox.vbuckets() <= owned
        assert self._unadvanced.keys() <= owned
        seqnos = self._builder.seqnos()
        assert seqnos.keys() == owned
        self._builder.check()
        assert self._builder.rollbacks.keys() <= owned
        assert len(self._quarantined) <= MAX_QUARANTINED, "the memory is bounded while the store is away"
        assert not self._ownership.begun or self._ownership.next_epoch > 0
        assert all(stable <= seqnos[vb] for vb, stable in self._stable.items()), "nothing unread is stable"

    def _grows(self, now: float) -> bool:
        """Return true if the round is large already, and is to become larger."""
        if not LARGE_ROUND_EVENTS <= self._builder.n_events < ROUND_EVENTS or now >= self._round_until:
            return False
        return self._pace.read_at <= now and not self._ownership.is_paused

    def _hand_over(self, *, grows: bool = False) -> Round | None:
        """Get the last round into the rings, then the next one, which is returned, unless it *grows*.

        Acknowledge when nothing that was read is left outside the rings but a round that grows: the source sends on.
        """
        if not self._outbox.flush():
            self._stats.add(stalls=1)
            return None
        if grows:
            self._feed.acknowledge()
            return None
        if self._outbox.n_rounds >= BUSY_ROUNDS and self._builder.n_events < ROUND_EVENTS:
            return None
        taken = self._builder.take()
        if taken is not None:
            self._quarantined = [*self._quarantined, *taken.quarantined][-MAX_QUARANTINED:]
            self._outbox.put(taken, self._ownership.epoch, self._group)
        if self._outbox.flush():
            self._feed.acknowledge()
        return taken

    def _advance(self, now: float) -> None:
        """Move the stable clock to all that is committed; from time to time, only see that we may.

        Raises:
            StaleEpoch: somebody else owns one of the partitions.
        """
        self._unadvanced.update(self._outbox.pop_committed())
        for vb in self._builder.rollbacks:
            self._unadvanced.pop(vb, None)  # known to be of a history that is no more
        checks = self._check_due(now)
        if now < self._advance_due or not (self._unadvanced or self._quarantined or checks):
            return
        by_partition: dict[int, dict[int, Checkpoint]] = {p: {} for p in self._ownership.owned} if checks else {}
        for vb, checkpoint in self._unadvanced.items():
            by_partition.setdefault(vb // self._width, {})[vb] = checkpoint
        assert by_partition.keys() <= self._ownership.owned, "what was let go had nothing in flight"
        try:
            if self._quarantined:
                self._store.quarantine(self._quarantined)
                self._quarantined = []
            if by_partition:
                self._store.advance(self._ownership.epoch, by_partition)
        except Transient as error:
            delay_s = self._backoff.next_delay_s()
            self._advance_at = now + delay_s
            self._stats.add(store_errors=1)
            self._log.warning(
                "feed.advance_failed",
                epoch=self._ownership.epoch,
                msg=str(error),
                failures=self._backoff.failures,
                retry_s=round(delay_s, 2),
            )
            return
        if self._backoff.failures:
            self._log.info("feed.advance_recovered", failures=self._backoff.failures)
            self._backoff.reset()
        self._advance_at = now + ADVANCE_INTERVAL_S
        self._check_at = now + EPOCH_CHECK_S if checks else self._check_at
        self._stable.update((vb, checkpoint.seqno) for vb, checkpoint in self._unadvanced.items())
        self._is_noted = self._is_noted and not self._unadvanced
        self._unadvanced = {}

    def _check_due(self, now: float) -> bool:
        """Return whether to see that our epochs are current: with a move of the stable clock, if one is on its way."""
        is_coming = not (self._unadvanced or self._outbox.empty)
        return now >= self._check_at + (EPOCH_CHECK_S if is_coming else 0.0) and not self._ownership.is_joining

    @property
    def _advance_due(self) -> float:
        """Time from which on the stable clock may move, in monotonic seconds."""
        is_busy = self._outbox.n_rounds >= BUSY_ROUNDS
        return self._advance_at + (BUSY_ADVANCE_DELAY_S if is_busy else 0.0)

    def _note_moments(self, now: float) -> None:
        """From time to time, note what is stable in the timelines of our partitions; where that fails, a bit later."""
        if self._is_noted or now < self._note_at or self._ownership.is_joining:
            return
        self._note_at = now + self._store.note_interval_s
        try:
            self._store.note_moments(self._ownership.epoch, self._ownership.owned, time.time())
        except Transient as error:
            self._stats.add(store_errors=1)
            self._log.warning("feed.note_failed", epoch=self._ownership.epoch, msg=str(error))
        else:
            self._is_noted = True

    def _report(self, now: float) -> None:
        if now < self._report_at:
            return
        self._report_at = now + LAG_INTERVAL_S
        self._quarantine_log.write_if_due(now)
        connected = int(self._feed.connected())
        self._stats.set(
            in_flight=self._outbox.n_events,
            oldest_ns=self._outbox.oldest_ns,
            lag=self._report_lag(connected),
            connected=connected,
            ring_fill=self._outbox.fill_bytes,
            ring_bytes=self._outbox.capacity_bytes,
        )

    def _report_lag(self, connected: int) -> int:
        """Publish how far each partition is behind; return all their seqnos together."""
        read, highs = self._builder.seqnos(), self._feed.high_seqnos()
        # where the source reported less, that was before: once a second, and not while we pause
        more = {vb: highs[vb] for vb in highs.keys() & read.keys() if highs[vb] > read[vb]}
        return self._lag.publish(time.monotonic_ns(), self._ownership.owned, read | more, self._stable, connected)

    def _wait(self, now: float) -> None:
        """Sleep until there is something to read, room or a commit in the rings, an order, or something to do."""
        if self._lingers(now):
            self._linger(now)
            return
        if self._grows(now):
            time.sleep(max(0.0, min(now + GROW_S, self._round_until) - time.monotonic()))
            return
        wake_at = min(self._tick_at, now + MAX_WAIT_S)
        if self._unadvanced:
            wake_at = min(wake_at, self._advance_due)
        if self._joiner.retry_at > now:
            wake_at = min(wake_at, self._joiner.retry_at)
        feed = () if self._ownership.is_paused else (self._feed,)
        if wait_readable([self._space_bell, self._stop, *self._assignment.sources, *feed], wake_at - time.monotonic()):
            self._space_bell.clear()  # before looking: what is committed after this rings it again

    def _linger(self, now: float) -> None:
        """Sleep until the next read; move the stable clock meanwhile, as soon as it may move.

        All else waits for that read, orders too. Only what was read before, and waits for the writers, does not.
        """
        until = min(self._pace.read_at, now + MAX_WAIT_S)
        while (now := time.monotonic()) < until:
            wake_at = min(until, self._advance_due) if self._unadvanced else until
            if self._outbox.empty:
                time.sleep(max(0.0, wake_at - now))  # to the beat: the timeout of poll is in whole ms
            elif wait_readable([self._space_bell], wake_at - now):
                self._space_bell.clear()  # before looking, as above
            if self._outbox.holds_back or self._builder.n_events:
                return
            if self._unadvanced or not self._outbox.empty:
                self._advance(time.monotonic())

    def _rollback_due(self) -> bool:
        first = self._builder.rollback_since
        return first is not None and time.monotonic() >= first + ROLLBACK_GATHER_S

    def _roll_back(self) -> int:
        """Begin a new epoch at what the source still has, for every partition that it took something back from.

        Raises:
            StaleEpoch: we are not the owner any more; then nothing is rolled back by us.
        """
        by_partition: defaultdict[int, dict[int, Checkpoint]] = defaultdict(dict)
        for vb, checkpoint in self._builder.rollbacks.items():
            by_partition[vb // self._width][vb] = checkpoint
            self._log.warning(
                "feed.rolled_back", epoch=self._ownership.epoch, vb=vb, seqno=checkpoint.seqno, stable=self._stable[vb]
            )
        assert by_partition, "a rollback is of some vbucket"
        assert by_partition.keys() <= self._ownership.owned
        epoch = self._store.next_epoch()
        self._store.begin_all(by_partition, epoch, self._owner, only_if=self._ownership.epoch)
        return ROLLED_BACK

    def _drain(self) -> None:
        """Stop reading; wait until all that was read is in the index and stable. The supervisor bounds the time."""
        self._feed.close()
        while True:
            now = time.monotonic()
            self._stats.beat()
            taken = self._hand_over()
            if taken is not None:
                self._count(taken)
            self._advance(now)
            if self._outbox.empty and not self._unadvanced and not self._quarantined:
                break
            wait_readable([self._space_bell], min(MAX_WAIT_S, max(0.001, self._advance_due - now)))
            self._space_bell.clear()
        self._log.info("feed.drained", epoch=self._ownership.epoch)


def _checkpoints(records: Iterable[PartitionRecord]) -> dict[int, Checkpoint]:
    """Return where to resume each vbucket of *records*."""
    return {
        vb: checkpoint for record in records for vb, checkpoint in zip(record.vbuckets, record.checkpoints, strict=True)
    }
