"""The mistakes: one line of the data path each, as somebody could make it who means well.

All tests survived some of them once; the others are of their kinds: a bound that is off by one, a condition left
out, a step that is skipped or comes too early, an epoch that is ignored, one clock taken for another.
"""

from typing import NamedTuple


class Mutation(NamedTuple):
    """Replaces `old` by `new` in `file`, where it stands exactly once; `tests` have to notice."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def name(self) -> str:
        """How it is named to people: the file, and the first line that changes."""
        pairs = zip(self.old.splitlines(), [*self.new.splitlines(), *[""] * 9], strict=False)
        before, after = next((pair for pair in pairs if pair[0] != pair[1]), (self.old, self.new))
        return f"{self.file}: {before.strip()} -> {after.strip() or '(nothing)'}"


def _of(file: str, tests: str, *changes: tuple[str, str]) -> list[Mutation]:
    """The *changes* of one file, which the unit tests *tests* (names without `test_` and `.py`) have to notice."""
    paths = tuple(f"tests/unit/test_{name}.py" for name in tests.split())
    return [Mutation(file, old, new, paths) for old, new in changes]


_POSITION = _of(
    "channelindex/feeds/position.py",
    "round",
    ("if self._at_end() or snap_start > self.seqno:", "if self._at_end():"),
    ("deque([checkpoint.snap_start], MAX_COMPLETE)", "deque([checkpoint.seqno], MAX_COMPLETE)"),
    ("deque([checkpoint.snap_start], MAX_COMPLETE)", "deque([0], MAX_COMPLETE)"),
    ("if seqno <= to.seqno), default=0)", "if seqno < to.seqno), default=0)"),
    ("safe = max((seqno for", "safe = min((seqno for"),
    ("if at < self.snap_end and at != self.snap_start:", "if at < self.snap_end:"),
    ("if at < self.snap_end and", "if at <= self.snap_end and"),
    ("self.seqno >= self.snap_end", "self.seqno > self.snap_end"),
    ("self.seqno] if self._at_end() else", "self.seqno] if False else"),
    ("self.snap_start = self.seqno\n", "self.snap_start = snap_start\n"),
    ("self._complete_at.append(self.seqno)", "pass"),
    ("        if end < branched_at:\n", "        if False:\n"),
    ("vbuuid_at(self.failover_log, end)", "vbuuid_at(self.failover_log, at)"),
    ("            start, end = self.snap_start, self.snap_end\n", "            pass\n"),
)

_ROUND = _of(
    "workers/pipeline/round.py",
    "round",
    ("            self._removals.clear()\n", ""),
    ("        self._removals.clear()  #", "        #"),
    (
        "            position.seqno = event[2]\n            self._touched.add(vb)\n",
        "            position.seqno = event[2]\n",
    ),
    (
        "in channels:\n                            sections[channel].append(",
        "in channels:\n                            sections[channel].insert(0, ",
    ),
    (
        "removal is None:\n                self._sections[channel].append(",
        "removal is None:\n                self._sections[channel].insert(0, ",
    ),
    ("if removals.is_empty and not any(", "if not any("),
    ("            elif channel in due:", "            elif True:"),
    ("flags = REMOVED | (DELETED if removal.deleted else 0)", "flags = REMOVED"),
    ("for vb in self._touched}", "for vb in self._positions}"),
)

_MARKERS = [
    *_of(
        "channelindex/feeds/dcp/parser.py",
        "kernel",
        ("            if end > offset:\n", "            if stream is not None:\n"),
        ("                self._last = None if stream is None else (stream, newest)", "                pass"),
    ),
    *_of(
        "workers/pipeline/round.py",
        "kernel",
        (
            "        self.n_events += n_documents\n        return",
            "        self.n_events += left_at - at\n        return",
        ),
    ),
]

_REMOVALS = _of(
    "channelindex/decode/removals.py",
    "decode_removals",
    ("            if before:\n                words[at] = 0\n", ""),
    ("if words[at] == name else []", "if words[at] else []"),
    ("removal.sequence, removal.rev, removal.deleted", "removal.rev, removal.deleted"),
    ("return own if before[1] == _digest(older) else hashes", "return own"),
    ("if before[1] == _digest(hashes):", "if before[1]:"),
)

_FEED_WORKER = _of(
    "workers/pipeline/feed_worker.py",
    "feed_worker feed_reassign",
    ("self._unadvanced.pop(vb, None)", "pass"),
    (
        "self._outbox.empty and not self._unadvanced and not self._quarantined\n",
        "self._outbox.empty and not self._quarantined\n",
    ),
    (" and not self._builder.holds_any(vbuckets)", ""),
    ("self._outbox.vbuckets().union(self._unadvanced)", "set(self._unadvanced)"),
    ("self._outbox.vbuckets().union(self._unadvanced)", "self._outbox.vbuckets()"),
    (
        "        if self._outbox.flush():\n            self._feed.acknowledge()",
        "        self._outbox.flush()\n        self._feed.acknowledge()",
    ),
    (
        "self._builder.begin(checkpoints)\n        self._outbox.begin(epoch, self._store.servers())",
        "self._builder.begin(checkpoints)",
    ),
    (", self._owner, only_if=self._ownership.epoch)", ", self._owner)"),
    ("if self._outbox.empty and not self._unadvanced and not self._quarantined:", "if self._outbox.empty:"),
    (
        "            delay_s = self._backoff.next_delay_s()\n            self._advance_at",
        "            self._unadvanced, delay_s = {}, 0.1\n            self._advance_at",
    ),
    ("self._feed.drop(self._vbuckets_of(leaving))", "pass"),
    (" and not self._ownership.is_joining", ""),
    ("if self._builder.rollback_since is not None:  # a new", "if False:  # a new"),
    ("if self._ownership.is_paused and self._is_idle:", "if self._ownership.is_paused:"),
    ("self._feed.read(READ_BYTES) if reads else ()", "self._feed.read(READ_BYTES)"),
    ("self._group = group_of(sorted(self._ownership.owned), self._meta.n_partitions)", "pass"),
)

_JOIN = _of(
    "workers/pipeline/join_epoch.py",
    "feed_reassign",
    (", self._owner, only_if=ownership.epoch)", ", self._owner)"),
    ("ownership.next_epoch, self._owner", "self._store.next_epoch(), self._owner"),
    ("except (Transient, StaleEpoch) as error:", "except Transient as error:"),
)

_OWNERSHIP = _of(
    "workers/pipeline/ownership.py",
    "ownership feed_reassign",
    ("(Phase.BEGUN, Step.WITHDRAW): None", "(Phase.BEGUN, Step.WITHDRAW): Phase.ACTIVE"),
    (
        "return None if self.is_joining or coming == self.begun else coming",
        "return None if coming == self.begun else coming",
    ),
    ("self.owned | self.begun | self.assigned", "self.owned | self.assigned"),
    ("self.owned - self.assigned - self.leaving", "self.owned - self.assigned"),
    ("self.epoch = self.next_epoch\n", "pass\n"),
    ("if is_settled(partition)}", "}"),
    ("        self.is_joining = True\n", ""),
)

_OUTBOX = _of(
    "workers/pipeline/outbox.py",
    "outbox stable_queue commit_bell",
    ("ring.epoch = epoch\n", "pass\n"),
    ("bell.ring()  # an earlier life", "pass  # an earlier life"),
    ("all(map(le, self._queue[0].positions, committed))", "all(map(int.__lt__, self._queue[0].positions, committed))"),
    ("while self._queue and all(", "while self._queue and any("),
    ("            self._await(self._in_flight.first)\n        return True", "        return True"),
    (
        "            self._await(self._in_flight.first)\n        return popped",
        "            pass\n        return popped",
    ),
    ("self._await([0] * len(self._rings))", "pass"),
    ("checkpoints={**last.checkpoints, **checkpoints}", "checkpoints={**checkpoints, **last.checkpoints}"),
    ("positions = [ring.written for", "positions = [ring.committed for"),
    ("return self._round is None and len(self._in_flight) == 0", "return len(self._in_flight) == 0"),
    ("newest.update(item.checkpoints)", "newest = {**item.checkpoints, **newest}"),
    ("return self._in_flight.vbuckets().union(waiting)", "return self._in_flight.vbuckets()"),
    ("if sections or principals:", "if sections:"),
)

_FRAMES = _of(
    "workers/pipeline/frames.py",
    "frames",
    ("known.append(entries)", "known.insert(0, entries)"),
    (
        "sections_by_channel.setdefault((frame.epoch, frame.group), {})",
        'sections_by_channel.setdefault((frame.epoch, ""), {})',
    ),
    ("yield part\n            part, n_bytes = [], 0\n", "yield part\n            part, n_bytes = part[-1:], 0\n"),
)

_RING = _of(
    "workers/pipeline/ring.py",
    "ring commit_bell",
    ("all(ring.committed >= ring.awaited", "any(ring.committed >= ring.awaited"),
    ("self._words[_COMMITTED] = self._words[_READ]", "self._words[_COMMITTED] = self._words[_WRITTEN]"),
    ('taken again."""\n        self._words[_READ] = self._words[_COMMITTED]', 'taken again."""'),
    ("start + size - self._words[_COMMITTED] > self.capacity", "start + size - self._words[_READ] > self.capacity"),
    (
        "start + size - self._words[_COMMITTED] > self.capacity",
        "start + size - self._words[_COMMITTED] >= self.capacity",
    ),
    ("return position >> 3 & 0xFFFFFFFF", "return 0"),
    ("if payloads and n_bytes > max_bytes:", "if payloads and n_bytes >= max_bytes:"),
    ("self.capacity // 2 - _FRAME_HEAD.size", "self.capacity // 2"),
    ("elif length <= written - position - _FRAME_HEAD.size:", "else:"),
)

_BATCH_WRITER = _of(
    "workers/pipeline/batch_writer.py",
    "batch_writer",
    (
        "        store_us = self._write(merged.",
        "        [ring.commit() for ring in self._rings]\n        store_us = self._write(merged.",
    ),
    ("            ring.reset_consumer()\n", ""),
    ("                self._sleep(delay_s)\n                continue\n", "                return\n"),
    ("while appends or principals:", "while appends:"),
    ("self._look_at_beats(timer, looks=False)  # and", "self._wait(timer)  # and"),
    (
        "            if self._stop.is_set():\n                return exits.OK\n",
        "            return exits.OK\n",
    ),
)

_MERGE = _of(
    "workers/pipeline/frames.py",
    "batch_writer",
    ("if frame.epoch >= least and", "if"),
    ("if frame.epoch >= least and", "if frame.epoch == least and"),
)

_ASSIGNMENT = _of(
    "workers/pipeline/assignment.py",
    "assignment",
    ("            self.working |= partitions\n", ""),
    ("if reported.number == self._assigned.number:", "if reported.number >= 0:"),
)

_DECIDE = _of(
    "workers/node/decide.py",
    "decide",
    ("if not child.working <= leased:", "if False:"),
    ("yield Assign(child.name, target - others)", "yield Assign(child.name, target)"),
    ("drained = due - _worked_on(children.feeds)", "drained = due"),
    ("yield Start(child.name, target - worked_on)", "yield Start(child.name, target)"),
    (" - set(state.report.due_releases), state.targets)", ", state.targets)"),
    (
        "if state.phase is NodePhase.RUNNING or any(child.is_alive for child in children.feeds):",
        "if state.phase is NodePhase.RUNNING:",
    ),
    ("if now < deadline}", "if now <= deadline}"),
    ("if not we_were_paused and child.silent_s > timeout_s:", "if child.silent_s > timeout_s:"),
    ("if not children.keeper.is_alive or not state.report:", "if not state.report:"),
    ("        state.report = _without(state.report, drained)\n", ""),
    ("state.report.leases if state.is_draining else state.report.due_releases", "state.report.due_releases"),
    (
        "    if state.phase is not NodePhase.RUNNING:\n        return\n    for child in children.writers:",
        "    for child in children.writers:",
    ),
    (" and name not in ASIDE and not state.is_draining:", " and not state.is_draining:"),
)

_CHILD_SLOT = _of(
    "workers/node/child_slot.py",
    "child_slot",
    ("        self.stats.beat()  # what", "        # what"),
    ("self.child, self.link, self._kill_at = None, None, None", "self.child, self.link = None, None"),
    ("may_start=self.child is None and now >= self._start_at", "may_start=self.child is None"),
    ("self._stale_backoff if code == STALE else self._backoff", "self._backoff"),
)

_COORDINATOR = [
    *_of(
        "coordinator/membership.py",
        "membership",
        ("self.book.renew(owned, sent_at)", "self.book.renew(owned, self._clock())"),
        ("        self.book.give_up(given)\n", ""),
        (
            "self._view.owned_by(self._identity.node) if answer.accepted else ()",
            "self._view.owned_by(self._identity.node)",
        ),
        ("take=self.book.unexpired(self._clock())", "take=()"),
    ),
    *_of(
        "coordinator/lease.py",
        "lease membership",
        ("self._timing.ttl_s - self._timing.margin_s", "self._timing.ttl_s"),
        ("deadline_by_partition.items() if now < at}", "deadline_by_partition.items() if now <= at}"),
    ),
    *_of(
        "coordinator/keeper.py",
        "lease_keeper",
        ("leases = membership.book.unexpired(now)", "leases = membership.book.unexpired(0.0)"),
        ("urgent |= bool(order.release) or order.drain", "urgent |= order.drain"),
    ),
]

_EPOCHS = _of(
    "channelindex/epochs.py",
    "epochs timeline",
    ("    if epoch != record.epoch:\n", "    if epoch < record.epoch:\n"),
    ("if checkpoint.seqno >= moved[index].seqno:", "if True:"),
    ("        if checkpoint.seqno >= starts[index]:\n", "        if False:\n"),
    ("        if checkpoint.seqno < through[index]:\n", "        if False:\n"),
    ("    if record.epoch != epoch:\n", "    if record.epoch > epoch:\n"),
    ("map(min, suffix_minima[-1], start.starts)", "start.starts"),
    ("if not all(map(le, new.starts, old.starts)) or", "if not any(map(le, new.starts, old.starts)) or"),
    ("or not all(map(le, new.true_upto, old.true_upto))", ""),
    ("return NO_BOUND not in old.reaches or", "return True or"),
    ("NO_BOUND if index in unwatched else", ""),
    ("map(min, reach_minima[-1], start.true_upto)", "start.true_upto"),
    ("at.reach if at.seqno == kept else kept", "kept"),
    ("if at.complete_at < true[0].seqno", "if at.seqno < true[0].seqno"),
    ("if epoch <= record.epoch or (only_if", "if epoch < record.epoch or (only_if"),
    ("return tuple(map(min, seqnos, self.of(epoch)))", "return tuple(seqnos)"),
)

_BLOCK_WRITER = _of(
    "channelindex/stores/block_writer.py",
    "block_writer",
    ("self._active.clear()  # see above", "pass  # see above"),
)

MUTATIONS: list[Mutation] = [
    *_POSITION,
    *_ROUND,
    *_MARKERS,
    *_REMOVALS,
    *_FEED_WORKER,
    *_JOIN,
    *_OWNERSHIP,
    *_OUTBOX,
    *_FRAMES,
    *_RING,
    *_BATCH_WRITER,
    *_MERGE,
    *_ASSIGNMENT,
    *_DECIDE,
    *_CHILD_SLOT,
    *_COORDINATOR,
    *_EPOCHS,
    *_BLOCK_WRITER,
]
