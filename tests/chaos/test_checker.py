"""The checker is checked: it finds bugs that are planted into a node or a reader, and accuses nobody who is healthy."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from channelindex.hashing import vbucket_of
from devbucket.bucket_config import DevBucketConfig
from devbucket.process import DevBucket
from devbucket.sync_gateway.layouts import XattrLayout
from tests.chaos import checker, planted, recorder
from tests.chaos.checker import Finding, judge
from tests.chaos.raw_index import read_index
from tests.chaos.record import Record, Rollback
from tests.chaos.recorder import Recorder, StableClock
from tests.chaos.writer import KnownWriter
from tests.support.node import until
from tests.support.running import await_stable

N_VBUCKETS = 16
FEW_DOCUMENTS = 40
N_LOST = 3
"""Seqnos that each vbucket loses by a failover."""
FOLLOWED = ("*", "ch-001", "ch-002")


class Trial:
    """A node into which bugs can be planted, its bucket, one writer, some readers, and all that they leave behind."""

    def __init__(self, folder: Path, store_url: str, stack: ExitStack, **settings: object) -> None:
        self.folder = folder
        self.store_url = store_url
        self.record = Record()
        self.bucket = stack.enter_context(DevBucket(DevBucketConfig(n_vbuckets=N_VBUCKETS)))
        settings = {
            "workers__kernel": "off",
            "index__partitions": 4,
            "workers__feed_workers": 1,
            "workers__batch_writers": 1,
            **settings,
        }
        node = planted.PlantedNode("n1", folder, store_url, self.bucket, coordination__ttl_s=1.0, **settings)
        self.node = stack.enter_context(node.start())
        self.writer = KnownWriter(self.bucket, "doc", XattrLayout(), FEW_DOCUMENTS)
        stack.callback(self.writer.finish, Record())
        self.recorder = Recorder(store_url)
        for channel in FOLLOWED:
            self.recorder.follow(channel)
        self.recorder.start()
        stack.callback(self.recorder.stop)
        self.clock = StableClock(store_url)
        stack.callback(self.clock.close)

    def write(self, n: int) -> None:
        """Write *n* revisions and wait until they are stable."""
        self.writer.more(n)
        await_stable(self.store_url, self.bucket)

    def fail_over(self) -> None:
        """Have all vbuckets lose their newest seqnos."""
        begun = time.monotonic()
        vbs = tuple(range(N_VBUCKETS))
        with self.writer.paused():
            for vb in vbs:
                self.bucket.failover(vb, N_LOST)
            kept = tuple(self.bucket.high_seqnos())
            self.writer.find_what_was_taken_back(vbs)
        self.record.rollbacks.append(Rollback(begun, time.monotonic(), vbs, kept))

    def child(self, role: str) -> psutil.Process:
        """The worker of that role, once there is one."""
        until(lambda: self.node.children(role), f"a {role}")
        return self.node.children(role)[0]

    @contextmanager
    def standing(self, role: str) -> Iterator[psutil.Process]:
        """Have the worker of that role stand still meanwhile."""
        child = self.child(role)
        child.suspend()
        until(lambda: child.status() == psutil.STATUS_STOPPED, f"the {role} to stand still")
        yield child
        with suppress(psutil.NoSuchProcess):
            child.resume()

    def kill(self, role: str) -> None:
        """Kill the worker of that role."""
        victim = self.child(role)
        victim.kill()
        until(lambda: not victim.is_running(), "the killed process to be gone")

    def judge(self) -> list[Finding]:
        """Let everything come to rest; what the checker finds. The bundle is left in the folder."""
        self.writer.heal()
        await_stable(self.store_url, self.bucket)
        self.recorder.finish(self.record)
        self.writer.finish(self.record)
        index = read_index(self.store_url)
        self.record.save(self.folder)
        index.save(self.folder)
        return judge(self.record, index)


@contextmanager
def trial(folder: Path, store_url: str, **settings: object) -> Iterator[Trial]:
    with ExitStack() as stack:
        yield Trial(folder, store_url, stack, **settings)


@pytest.fixture
def healthy(tmp_path: Path, redis_url: str) -> Iterator[Trial]:
    """A trial in which all is well so far."""
    with trial(tmp_path, redis_url, index__block_bytes=2048) as begun:
        begun.write(100)
        begun.recorder.await_read()
        yield begun


def kinds(findings: list[Finding]) -> set[str]:
    return {finding.kind for finding in findings}


# -- bugs of a node


def test_a_healthy_node_whose_processes_die_and_whose_bucket_loses_changes_is_not_accused(healthy: Trial) -> None:
    for role in ("feed_worker", "batch_writer"):
        healthy.kill(role)
        healthy.write(60)
        healthy.recorder.await_read()
    healthy.fail_over()
    healthy.write(60)
    assert healthy.judge() == []
    assert healthy.record.taken_back
    assert len(healthy.record.told) > 100
    assert len(healthy.record.samples) > 1
    assert checker.main([str(healthy.folder)]) == 0


def test_an_append_that_is_skipped_is_lost(healthy: Trial) -> None:
    healthy.node.plant(planted.skip_an_append)
    healthy.write(1)
    assert "lost" in kinds(healthy.judge())
    assert checker.main([str(healthy.folder)]) == 1


def test_a_stable_clock_that_does_not_wait_for_the_writers_makes_readers_miss_what_comes_late(healthy: Trial) -> None:
    healthy.node.plant(planted.advance_early)
    with healthy.standing("batch_writer"):
        healthy.write(20)
        healthy.recorder.await_read()
        healthy.node.cure(planted.advance_early)
    healthy.write(1)  # stable once the writer has written all that comes before it
    assert kinds(healthy.judge()) == {"missed"}


def test_a_stable_clock_that_does_not_wait_for_the_writers_loses_what_a_killed_node_had(healthy: Trial) -> None:
    healthy.node.plant(planted.advance_early)
    with healthy.standing("batch_writer") as writer:
        healthy.write(20)
        healthy.node.kill()
    assert not writer.is_running()
    healthy.node.start()
    assert kinds(healthy.judge()) == {"lost", "missed"}


def test_frames_of_a_dead_epoch_that_are_revived_are_phantoms(healthy: Trial) -> None:
    healthy.node.plant(planted.revive_a_dead_epoch)
    with healthy.standing("batch_writer"):
        with healthy.standing("feed_worker"):  # so that all is in the first rounds, which the rings take
            healthy.writer.more(60)
        kept = [high - N_LOST for high in healthy.bucket.high_seqnos()]

        def are_in_rings() -> bool:
            told = healthy.node.told_of(planted.revive_a_dead_epoch)
            n_doomed: int = sum(seqno > kept[vb] for vb, seqno in enumerate(told))
            return n_doomed > N_VBUCKETS // 2

        until(are_in_rings, "what will be lost to be in the rings")
        n_begun = healthy.node.log.read_text().count("feed.started")
        healthy.fail_over()
        until(lambda: healthy.node.log.read_text().count("feed.started") > n_begun, "the next epoch")
    healthy.write(100)
    assert "phantom" in kinds(healthy.judge())


def test_a_rollback_whose_epoch_starts_too_high_leaves_phantoms(healthy: Trial) -> None:
    healthy.node.plant(planted.forget_bounds)
    healthy.fail_over()
    healthy.write(200)
    assert kinds(healthy.judge()) >= {"phantom", "duplicate"}


def test_a_rollback_within_the_epoch_leaves_phantoms(healthy: Trial) -> None:
    healthy.node.plant(planted.go_on_after_a_rollback)
    healthy.fail_over()
    healthy.write(200)
    assert kinds(healthy.judge()) >= {"phantom", "duplicate"}


def test_changes_above_the_checkpoint_that_are_not_asked_for_are_lost(healthy: Trial) -> None:
    healthy.node.kill()
    healthy.writer.more(30)
    vb = fullest_vbucket(healthy.writer.last(30))
    healthy.node.plant(planted.resume_too_late, vb, healthy.bucket.high_seqnos()[vb] - 1)
    healthy.node.start()
    assert "lost" in kinds(healthy.judge())


def fullest_vbucket(documents: set[str]) -> int:
    """The vbucket that has most of *documents*; at least two."""
    vbuckets = [vbucket_of(doc.encode(), N_VBUCKETS) for doc in documents]
    fullest = max(vbuckets, key=vbuckets.count)
    assert vbuckets.count(fullest) > 1
    return fullest


def test_removals_that_are_dropped_are_lost(healthy: Trial) -> None:
    healthy.node.plant(planted.drop_removals)
    healthy.write(60)
    assert "lost" in kinds(healthy.judge())


def test_deletions_without_their_flag_are_found(healthy: Trial) -> None:
    healthy.node.plant(planted.drop_the_deleted_flag)
    healthy.write(60)
    assert kinds(healthy.judge()) == {"wrong flag", "missed"}


def test_entries_with_a_wrong_revision_are_phantoms_and_the_right_ones_lost(healthy: Trial) -> None:
    healthy.node.plant(planted.misspell_revisions)
    healthy.write(10)
    assert kinds(healthy.judge()) == {"lost", "phantom", "missed"}


def test_entries_in_a_wrong_channel_are_phantoms_and_lost_from_the_right_one(healthy: Trial) -> None:
    healthy.node.plant(planted.mistake_a_channel)
    healthy.write(60)
    assert kinds(healthy.judge()) >= {"lost", "phantom", "missed"}


def test_batches_that_are_written_backwards_are_out_of_order(healthy: Trial) -> None:
    healthy.node.plant(planted.reverse_batches)
    with healthy.standing("batch_writer"):  # so that many are in one batch
        healthy.writer.more(300)
    healthy.write(1)
    assert kinds(healthy.judge()) == {"order"}


def test_a_block_whose_header_says_too_little_is_found(healthy: Trial) -> None:
    healthy.node.plant(planted.forget_headers)
    for _ in range(5):  # each a batch that fills a block of the channel *, which the next one finds full
        healthy.write(40)
    assert "clock" in kinds(healthy.judge())


def test_a_stable_clock_that_moves_back_without_a_rollback_is_found(healthy: Trial) -> None:
    before = healthy.clock.read()
    healthy.node.plant(planted.hold_the_stable_clock)
    healthy.node.plant(planted.begin_at_zero)
    healthy.kill("feed_worker")
    until(lambda: healthy.clock.read() not in (None, before), "the new epoch")
    healthy.recorder.await_read()
    healthy.node.cure(planted.begin_at_zero)
    healthy.node.cure(planted.hold_the_stable_clock)
    assert kinds(healthy.judge()) == {"stable moved back", "duplicate"}


# -- bugs of a reader

Plant = Callable[[type], Trial]


@pytest.fixture
def with_reader(tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plant]:
    """Begins a trial with readers of a kind."""
    with ExitStack() as stack:

        def begin(kind: type) -> Trial:
            monkeypatch.setattr(recorder, "ChangesReader", kind)
            return stack.enter_context(trial(tmp_path, redis_url))

        yield begin


def test_a_reader_that_tells_what_is_not_stable_is_found(with_reader: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = with_reader(planted.EagerReader)
    begun.write(100)
    begun.node.plant(planted.hold_the_stable_clock)
    begun.writer.more(20)

    def are_stored() -> bool:
        """Whether entries are in the store that the reader comes to two seqnos beyond the clock."""
        stable = begun.clock.read() or ()
        return any(0 < e.seqno - stable[e.vb] <= 2 for e in read_index(begun.store_url).entries if stable)

    until(are_stored, "entries beyond the stable clock")
    monkeypatch.setattr(planted, "EAGER_SEQNOS", 2)
    begun.recorder.await_read()
    begun.node.cure(planted.hold_the_stable_clock)
    assert "before stable" in kinds(begun.judge())


def test_a_reader_that_tells_twice_is_found(with_reader: Plant) -> None:
    begun = with_reader(planted.ForgetfulReader)
    begun.write(60)
    until(begun.recorder.told, "a page to be told")
    assert kinds(begun.judge()) == {"duplicate"}


def test_a_reader_that_goes_back_is_found(with_reader: Plant) -> None:
    begun = with_reader(planted.BackwardReader)

    def went_back() -> bool:
        """Whether a page had two changes of a vbucket: how much is in one depends on who is faster."""
        begun.write(20)
        told = pairwise(begun.recorder.told())
        return any(a.reader == b.reader and a.vb == b.vb and a.seqno > b.seqno for a, b in told)

    until(went_back, "the reader to go back")
    assert kinds(begun.judge()) == {"went back"}
