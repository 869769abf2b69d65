"""Random lives of an index: owners, zombies, failovers, rotations, lost and late requests, against an oracle.

The source is a list of revisions per vbucket and branch. Owners index what they have received, in batches that may
fail in any way and are repeated; some of their requests arrive late. After every step the index must say exactly
what the branch that its checkpoint names says up to the stable clock, and a reader that goes on from its token must
have been told every document's newest revision, or one that is newer and comes again after a return. What a rollback
took back and nothing replaced is withdrawn, and nothing else is.
"""

import itertools
import uuid
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from channelindex import epochs
from channelindex.blocks import FORMAT_VERSION
from channelindex.checking.rewind import rewind_partitions
from channelindex.errors import StaleEpoch, Transient
from channelindex.model import Checkpoint, Entry, IndexMeta
from channelindex.reading import since_token
from channelindex.reading.changes_reader import ChangesReader
from channelindex.reading.paging import Change
from channelindex.stores.base import ChannelAppend
from channelindex.stores.couchbase.writer import CouchbaseBlocks
from tests.support.couchbase_faults import FaultyLink
from tests.support.profiles import examples
from tests.support.stores import GROUP, Backend, FaultyOperations, append, check_headers, visible_entries

VBUCKETS = range(2)
CHANNELS = ("A", "B")
GROUPS = (GROUP, "ffeeddcc99887766")
META = IndexMeta(FORMAT_VERSION, n_vbuckets=2, n_partitions=1, source_uuid="s", index_uuid="i")
FAULTS = st.lists(st.sampled_from(["none", "none", "before", "after", "late", "twice"]), max_size=3)
CHANGES = st.lists(
    st.tuples(st.sampled_from(VBUCKETS), st.sampled_from(CHANNELS), st.integers(0, 3)), min_size=1, max_size=6
)
BLOCK_BYTES = 80

Log = list[tuple[str, Entry]]
"""(channel, entry); the position is the seqno less one."""


class Source:
    """Per vbucket its branches: a failover keeps a beginning of the present one and goes on otherwise."""

    def __init__(self) -> None:
        self.logs_by_branch: list[dict[int, Log]] = [{vb: [] for vb in VBUCKETS}]
        self.branched_at: list[dict[int, int]] = [dict.fromkeys(VBUCKETS, 0)]
        self._revisions = itertools.count(1)

    @property
    def branch(self) -> int:
        """The present branch; its number is the vbuuid."""
        return len(self.logs_by_branch) - 1

    @property
    def logs(self) -> dict[int, Log]:
        return self.logs_by_branch[-1]

    def change(self, vb: int, channel: str, document: int) -> None:
        seqno = len(self.logs[vb]) + 1
        revision = f"{next(self._revisions)}-x"
        self.logs[vb].append((channel, Entry(vb, seqno, b"doc-%d-%d" % (vb, document), revision, 0)))

    def fail_over(self, kept: Mapping[int, int]) -> None:
        at = {vb: min(kept[vb], len(self.logs[vb])) for vb in VBUCKETS}
        self.logs_by_branch.append({vb: self.logs[vb][: at[vb]] for vb in VBUCKETS})
        self.branched_at.append(at)

    def rollbacks(self, checkpoints: Mapping[int, Checkpoint]) -> dict[int, Checkpoint]:
        """What a server answers to a request to resume from *checkpoints*: where to go back to, per vbucket."""
        answers = {}
        for vb, checkpoint in checkpoints.items():
            limits = [at[vb] for at in self.branched_at[checkpoint.vbuuid + 1 :]]
            if limits and min(limits) < checkpoint.reach:
                back = min(*limits, checkpoint.complete_at)
                answers[vb] = Checkpoint(self.branch, back, back, back, 0)
        return answers


class Telling(NamedTuple):
    """What the reader was told of a document."""

    id: str
    vb: int
    seqno: int
    rev: str


def _telling(change: Change) -> Telling:
    return Telling(change.id, change.vb, change.seqno, change.rev)


class Worker:
    """One epoch of an owner and its batch writer. It goes on as a zombie after it has been replaced."""

    def __init__(
        self, epoch: int, branch: int, logs: dict[int, Log], group: str, start: Mapping[int, Checkpoint]
    ) -> None:
        self.epoch = epoch
        self.branch = branch
        self.logs = logs  # the source's own lists: it receives what is added until the branch ends
        self.group = group
        self.start = start
        self.sent = {vb: checkpoint.seqno for vb, checkpoint in start.items()}
        self.written = dict(self.sent)
        self.batch: list[ChannelAppend] = []
        self.refused = False

    def checkpoints(self) -> dict[int, Checkpoint]:
        """Up to where all is written. A snapshot in which it resumed lasts until its end."""
        found = {}
        for vb, seqno in self.written.items():
            is_within = seqno < self.start[vb].reach
            snapshot = self.start[vb][2:4] if is_within else (seqno, seqno)
            found[vb] = Checkpoint(self.branch, seqno, *snapshot)
        return found

    def take_batch(self, n_per_vbucket: int) -> None:
        entries_by_channel: dict[str, list[Entry]] = {}
        for vb in VBUCKETS:
            for channel, entry in self.logs[vb][self.sent[vb] : self.sent[vb] + n_per_vbucket]:
                entries_by_channel.setdefault(channel, []).append(entry)
                self.sent[vb] = entry.seqno
        self.batch = [
            append(channel, self.epoch, *entries, group=self.group) for channel, entries in entries_by_channel.items()
        ]


class IndexLife(RuleBasedStateMachine):
    """See the module's docstring."""

    def open_backend(self) -> Backend:
        return Backend("memory://")

    def faulty_operations(self) -> Any:
        return FaultyOperations(self.backend.operations())

    def __init__(self) -> None:
        super().__init__()
        self.backend = self.open_backend()
        self.owner = self.backend.owner()
        self.owner.create_or_check(META)
        self.store_reader = self.backend.reader()
        self.changes = ChangesReader(self.store_reader)
        self.source = Source()
        self.workers: list[Worker] = []
        self.operations = self.faulty_operations()
        self.writers = [self._new_writer(), self._new_writer()]
        self.newest_epoch = 0
        self.since: str | None = None
        self.told: set[Telling] = set()
        self.believed: dict[str, Telling] = {}
        self.taken_back: set[Telling] = set()
        """What was told, and has since the last answer been taken back by a rollback of the source."""
        self.begun_anew: set[int] = set()
        """The vbuckets in which the index alone has gone back to 0 since the last answer."""
        self.starts: dict[int, set[int]] = {vb: set() for vb in VBUCKETS}
        """By vbucket, the seqnos at which epochs began."""
        self.forgotten: set[Telling] = set()
        """What lies above a start that a rollback since the last answer implies: that it was dead is not known now."""
        self.said: set[Telling] = set()
        """What the index said at the last answer: also of documents of which the reader had been told a newer one."""

    def _new_writer(self):
        return self.backend.writer(BLOCK_BYTES, operations=self.operations)

    def teardown(self) -> None:
        self.backend.close()

    @initialize(changes=CHANGES, group=st.sampled_from(GROUPS))
    def begin(self, changes, group):
        self.change_documents(changes)
        self.start_worker(group)

    @rule(changes=CHANGES)
    def change_documents(self, changes):
        for change in changes:
            self.source.change(*change)

    @precondition(lambda self: self.source.branch < 3)
    @rule(kept=st.fixed_dictionaries({vb: st.integers(0, 6) for vb in VBUCKETS}))
    def fail_over(self, kept):
        self.source.fail_over(kept)

    @precondition(lambda self: len(self.workers) < 8)
    @rule(group=st.sampled_from(GROUPS))
    def start_worker(self, group):
        epoch = self.owner.next_epoch()
        record = self.owner.begin(0, epoch, f"n{epoch}")
        rollbacks = self.source.rollbacks(dict(zip(record.vbuckets, record.checkpoints, strict=True)))
        if rollbacks:
            epoch, former = self.owner.next_epoch(), epoch
            record = self.owner.begin(0, epoch, f"n{former}", rollbacks, only_if=former)
            self.forgotten |= {
                Telling(each.key.decode(), vb, each.seqno, each.rev)
                for vb, back in rollbacks.items()
                for logs in self.source.logs_by_branch
                for _, each in logs[vb]
                if any(back.seqno <= seqno < each.seqno for seqno in self.starts[vb])
            }
            self.taken_back |= {
                each for each in self.told if each.vb in rollbacks and each.seqno > rollbacks[each.vb][1]
            }
        start = dict(zip(record.vbuckets, record.checkpoints, strict=True))
        for vb, seqno in zip(record.vbuckets, record.stable, strict=True):
            self.starts[vb].add(seqno)
        self.newest_epoch = epoch
        self.workers.append(Worker(epoch, self.source.branch, self.source.logs, group, start))

    @rule(clock=st.dictionaries(st.sampled_from(VBUCKETS), st.integers(0, 4)))
    def rewind(self, clock):
        """An operator takes the partition back; its owner learns of it by being refused."""
        ((_, self.newest_epoch, before, after),) = rewind_partitions(
            self.owner, self.store_reader, [0], clock, "operator"
        )
        assert all(after[vb] <= seqno for vb, seqno in clock.items())
        for vb, seqno in after.items():
            self.starts[vb].add(seqno)
        anew = {vb for vb, seqno in after.items() if seqno == 0 < before[vb]}
        self.begun_anew |= anew
        self.taken_back = {each for each in self.taken_back if each.vb not in anew}
        self.forgotten = {each for each in self.forgotten if each.vb not in anew}

    @rule(age=st.integers(0, 3), batches=st.lists(st.tuples(st.integers(1, 3), FAULTS), min_size=1, max_size=3))
    def work(self, age, batches):
        """A worker writes some batches and advances; age 0 is the owner, all others are zombies."""
        worker = self.workers[-1 - age % len(self.workers)]
        for n_per_vbucket, faults in batches:
            self.write(worker, n_per_vbucket, faults)
        try:
            self.owner.advance(worker.epoch, {0: worker.checkpoints()})
        except StaleEpoch:
            assert worker.epoch != self.newest_epoch

    @rule(batches=st.lists(st.tuples(st.integers(1, 3), FAULTS), min_size=1, max_size=3))
    def own(self, batches):
        self.work(0, batches)

    def write(self, worker, n_per_vbucket, faults):
        """Go on with the batch that failed, else with the next one. An epoch belongs to one node and its writer."""
        if worker.refused:
            return
        if not worker.batch:
            worker.take_batch(n_per_vbucket)
        self.operations.next_faults = list(faults)
        try:
            stale = self.writers[worker.epoch % 2].write(worker.batch)
        except Transient:
            return
        finally:
            self.operations.next_faults = []
        worker.batch = []
        worker.refused = worker.epoch in stale
        assert not (worker.refused and worker.epoch == self.newest_epoch)
        if not worker.refused:
            worker.written = dict(worker.sent)

    @rule(node=st.integers(0, 1))
    def lose_a_writer(self, node):
        self.writers[node] = self._new_writer()

    @rule(position=st.integers(0, 3))
    def late_request_arrives(self, position):
        if self.operations.late:
            self.operations.late.pop(position % len(self.operations.late))()

    @rule()
    def read_on(self):
        answer = self.changes.changes(CHANNELS, self.since)
        expected = self._expected()
        self._check_withdrawn([change for change in answer.entries if change.withdrawn], expected)
        for change in answer.entries:
            if change.withdrawn:
                continue
            assert any(
                (change.vb, change.seqno, change.rev) == (entry.vb, entry.seqno, entry.rev) for _, entry in expected
            ), f"phantom {change}"
            self.believed[change.id] = _telling(change)
            self.told.add(self.believed[change.id])
        self.since = answer.since
        self.said = {Telling(each.key.decode(), each.vb, each.seqno, each.rev) for _, each in expected}
        newest = {entry.key: entry for _, entry in expected}
        for entry in newest.values():
            known = {entry, *self._to_come(entry)}
            told = {(each.key.decode(), each.vb, each.seqno, each.rev) for each in known} & self.told
            assert told, f"never told {entry}"

    def _check_withdrawn(self, withdrawn: list[Change], expected: Log) -> None:
        """Exactly what was told and taken back, and has no other revision in the index or to come.

        Nobody is told of what was taken back before the index went back to 0 alone; nor of what lies above the seqno
        of a token that was lowered, after a return, to what is true of it. Of such a document, the revision that the
        index had up to there may be. So may what was dead before, up to there, if the rollback implies why.
        """
        read = since_token.decode(self.since, META, since_token.ask(CHANNELS, None)).seqnos if self.since else (0, 0)
        newer = {each.id for each in self.taken_back if each.seqno > read[each.vb]}
        known = self.taken_back | {each for each in self.said if each.id in newer}
        known |= {each for each in self.forgotten if each.seqno <= read[each.vb]}
        for change in withdrawn:
            assert (change.removed, change.channels) == (True, ())
            assert _telling(change) in known, f"never told, or not taken back: {change}"
            assert all(change.id != entry.key.decode() for _, entry in expected), f"it is there: {change}"
            self.believed.pop(change.id, None)
        (record,) = self.store_reader.partition_records()
        branches = zip(record.vbuckets, record.checkpoints, strict=True)
        logs = [self.source.logs_by_branch[checkpoint.vbuuid][vb] for vb, checkpoint in branches]
        there = {entry.key.decode() for log in logs for _, entry in log}
        kept = {
            each
            for each in self.taken_back.intersection(self.believed.values())
            if each.id not in there and each.vb not in self.begun_anew and each.seqno <= read[each.vb]
        }
        assert not kept, f"not withdrawn: {kept}"
        self.taken_back, self.forgotten, self.begun_anew = set(), set(), set()

    def _to_come(self, entry: Entry) -> list[Entry]:
        """The newer revisions of a document that the source has and the index does not have yet, or not again."""
        (record,) = self.store_reader.partition_records()
        log = self.source.logs_by_branch[record.checkpoints[entry.vb].vbuuid][entry.vb]
        return [each for _, each in log[record.stable[entry.vb] :] if each.key == entry.key]

    def _expected(self) -> Log:
        (record,) = self.store_reader.partition_records()
        return [
            stored
            for vb, checkpoint in zip(record.vbuckets, record.checkpoints, strict=True)
            for stored in self.source.logs_by_branch[checkpoint.vbuuid][vb][: checkpoint.seqno]
        ]

    @invariant()
    def index_says_what_the_source_said(self):
        records = self.store_reader.partition_records()
        for record in records:
            record.check()
        for channel in CHANNELS:
            expected = {entry for named, entry in self._expected() if named == channel}
            assert visible_entries(self.store_reader, channel, META.partition_width) == expected
            check_headers(self.store_reader, channel, records, META.partition_width)


class IndexLifeInRedis(IndexLife):
    """The same in one Redis or a cluster, each life in an index of its own."""

    url: str
    _numbers = itertools.count()

    def open_backend(self) -> Backend:
        return Backend(self.url, f"life-{next(self._numbers)}")


class IndexLifeInCouchbase(IndexLife):
    """The same in a bucket; it is single requests that fail here, in the middle of what Redis does at once."""

    url: str

    def open_backend(self) -> Backend:
        return Backend(self.url, f"life-{uuid.uuid4().hex}")

    def faulty_operations(self) -> Any:
        return _FaultyBlocks(self.backend)


class _FaultyBlocks(CouchbaseBlocks):
    def __init__(self, backend: Backend) -> None:
        self._faulty_link = FaultyLink(backend.link())
        super().__init__(backend.settings, self._faulty_link)

    @property
    def late(self):
        return self._faulty_link.late

    @property
    def next_faults(self):
        return self._faulty_link.next_faults

    @next_faults.setter
    def next_faults(self, faults):
        self._faulty_link.next_faults = faults


@pytest.fixture(autouse=True)
def _short_history(monkeypatch):
    """Two epoch starts in a record, the others in the archive."""
    monkeypatch.setattr(epochs, "HISTORY_BYTES", 2 * 8 * 3)


def _run(machine: type[IndexLife], share: float) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples(share),
            stateful_step_count=40,
            phases=[Phase.explicit, Phase.reuse, Phase.generate],  # to shrink such a life takes minutes
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )


@pytest.mark.hypothesis
def test_any_life_in_memory():
    _run(IndexLife, share=2.0)


@pytest.mark.hypothesis
def test_any_life_in_redis(redis_server):
    IndexLifeInRedis.url = redis_server.url
    _run(IndexLifeInRedis, share=0.4)


@pytest.mark.hypothesis
def test_any_life_in_a_cluster(cluster_of_three):
    IndexLifeInRedis.url = cluster_of_three.url
    _run(IndexLifeInRedis, share=0.2)


@pytest.mark.hypothesis
def test_any_life_in_couchbase(couchbase_url):
    IndexLifeInCouchbase.url = couchbase_url
    _run(IndexLifeInCouchbase, share=0.4)
