"""Masters of a cluster lose the newest of what they acknowledged: a new epoch begins where all slots are complete."""

import itertools
import signal
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from channelindex.blocks import N_SLOTS
from channelindex.checking.rewind import rewind_partitions
from channelindex.errors import IndexCorrupt, OwnershipLost, StoreUnavailable
from channelindex.model import ORIGIN
from channelindex.reading.changes_reader import ChangesReader
from channelindex.stores.redis.keys import Keys
from channelindex.stores.redis.marks import read_marks
from channelindex.stores.redis.store_link import open_link
from tests.support.node import eventually
from tests.support.redis_cluster import N_MASTERS, ClusterOfThree
from tests.support.redis_servers import kept_snapshot
from tests.support.stores import META, Backend, append, checkpoints, entry, visible_entries

CHANNELS = [f"channel-{number}" for number in range(60)]
_numbers = itertools.count()


class Index:
    """An index whose owner is this test: every seqno is an entry in every channel."""

    def __init__(self, cluster: ClusterOfThree) -> None:
        self.cluster = cluster
        self.backend = Backend(cluster.url, f"loses-{next(_numbers)}")
        self.keys = Keys(self.backend.index_name)
        self.backend.owner().create_or_check(META)
        self.writer = self.backend.writer()
        self.seqno = self.begin()

    def begin(self) -> int:
        """A new owner's epoch; the seqno at which it begins."""
        self.owner: Any = self.backend.owner()
        return int(eventually(self._begin))

    def _begin(self) -> int:
        self.epoch = self.owner.next_epoch()
        return int(self.owner.begin(0, self.epoch, "n1").stable[0])

    def write(self) -> None:
        """The next seqno, made stable."""
        batch = [append(channel, self.epoch, entry(0, self.seqno + 1)) for channel in CHANNELS]
        assert eventually(lambda: self.writer.write(batch)) == set(), "refused"
        self.seqno += 1
        self.owner.advance(self.epoch, checkpoints({0: self.seqno}))

    def note(self, now_s: float) -> None:
        self.owner.note_moments(self.epoch, [0], now_s)

    def heal(self, seqno: int) -> None:
        """Begin, which has to go back to *seqno*, and write again what comes after it: then all is there."""
        goal = self.seqno
        self.seqno = self.begin()
        assert self.seqno == seqno
        while self.seqno < goal:
            self.write()
        reader = self.backend.reader()
        for channel in CHANNELS:
            assert {each.seqno for each in visible_entries(reader, channel)} == set(range(1, goal + 1))

    def master_of(self, key: str) -> int:
        return self.cluster.owner_of(self.cluster.nodes[0].execute_command("CLUSTER", "KEYSLOT", key))

    def master_of_blocks(self) -> int:
        """A master that has blocks, and not the records."""
        index = self.master_of(self.keys.meta)
        masters = (self.master_of(self.keys.channel(channel)) for channel in CHANNELS)
        return next(number for number in masters if number != index)

    def lose_tail(self, number: int, size: int) -> None:
        """Kill a master, and start it again with the first *size* bytes of its file."""
        self.cluster.kill(number)
        self.cluster.tear_append_file(number, size)
        self.cluster.restart(number)


@pytest.fixture(scope="module")
def cluster() -> Iterator[ClusterOfThree]:
    """Without replicas; it writes to disk."""
    with ClusterOfThree(append_only=True) as cluster:
        yield cluster


@pytest.fixture
def index(cluster: ClusterOfThree) -> Iterator[Index]:
    index = Index(cluster)
    with closing(index.backend):
        yield index


def test_a_master_whose_file_lacks_the_last_second_is_indexed_again_from_there(index):
    """Row 4: the record, on another master, says that what was lost is stable."""
    index.write()
    index.note(1000.0)
    index.write()
    index.note(1001.0)
    victim = index.master_of_blocks()
    on_disk = index.cluster.append_file_size(victim)
    index.write()
    index.note(1002.0)
    index.lose_tail(victim, on_disk)
    index.heal(2)


def test_a_master_that_is_restored_from_an_older_snapshot_is_indexed_again_from_there(index):
    """An RDB of one shard, as of a back-up; the others have all that came since."""
    index.write()
    index.note(1000.0)
    victim = index.master_of_blocks()
    with kept_snapshot(index.cluster.nodes[victim], index.cluster.folder(victim)) as put_back:
        index.write()
        index.note(1001.0)
        index.cluster.kill(victim)
        put_back()
    index.cluster.restart(victim, "appendonly no")
    index.cluster.write_append_file(victim)
    index.heal(1)


def test_a_stale_replica_that_was_promoted_is_indexed_again_from_where_it_is():
    """Row 3: it lacks what the master had acknowledged, and what has become stable."""
    with ClusterOfThree(replicas=True) as cluster:
        index = Index(cluster)
        index.write()
        index.note(1000.0)
        victim = index.master_of_blocks()
        replica = cluster.process(victim + N_MASTERS)
        cluster.await_offset(victim)
        replica.send_signal(signal.SIGSTOP)
        cluster.nodes[victim].execute_command("CLIENT", "KILL", "TYPE", "replica")
        index.write()
        index.note(1001.0)
        cluster.kill(victim)
        replica.send_signal(signal.SIGCONT)
        cluster.await_promotion(victim + N_MASTERS)
        index.heal(1)
        index.backend.close()


def test_a_planned_failover_tells_readers_only_what_follows_again():
    """One who was told all, one in the midst of a page, and one who was told less than the epoch begins with."""
    with ClusterOfThree(replicas=True) as cluster:
        cluster.allow_no_failover()
        index = Index(cluster)
        with closing(index.backend), ChangesReader(index.backend.reader()) as reader:
            behind = _told(reader, None)[1]
            for seqno in range(1, 6):
                index.write()
                behind = _told(reader, None)[1] if seqno == 1 else behind
                if seqno == 2:
                    index.note(1000.0)
            at_page_end = _told(reader, None, limit=4)[1]
            told, caught_up = _told(reader, None)
            assert told == [1, 2, 3, 4, 5]
            cluster.hand_over(index.master_of(index.keys.meta))
            index.seqno = index.begin()
            assert index.seqno == 2
            for since in (at_page_end, caught_up):
                assert _told(reader, since)[0] == [], "it has all that is there"
            told, behind = _told(reader, behind)
            assert told == [2]
            index.write()
            told, in_between = _told(reader, caught_up)
            assert told == [3]
            for _ in range(3):
                index.write()
            for since in (at_page_end, caught_up, behind):
                assert _told(reader, since)[0] == [3, 4, 5, 6]
            assert _told(reader, in_between)[0] == [4, 5, 6]


def test_a_reader_who_received_more_than_a_record_that_went_back_knows_begins_again(index):
    """The record is lost together with how far readers were: nobody would notice that the source took it back, too."""
    index.write()
    index.note(1000.0)
    index.write()
    records = index.master_of(index.keys.meta)
    on_disk = index.cluster.append_file_size(records)
    with ChangesReader(index.backend.reader()) as reader:
        known = _told(reader, None)[1]
        index.write()
        unknown = _told(reader, None)[1]
        index.lose_tail(records, on_disk)
        index.seqno = index.begin()
        index.write()
        assert index.seqno == 2
        assert _told(reader, known)[0] == [2]
        assert _told(reader, unknown)[0] == [3, 1, 2], "3 is withdrawn: nobody knows whether the source still has it"


def _told(reader: ChangesReader, since: str | None, limit: int | None = None) -> tuple[list[int], str]:
    """The seqnos that a reader of a channel is told who has the token *since*, and its next token."""
    page = eventually(lambda: reader.changes(CHANNELS[:1], since, limit))
    return [change.seqno for change in page.entries], page.since


def test_what_is_written_after_a_loss_does_not_vouch_for_what_was_lost(index):
    """Neither by an owner that has not noticed, nor by its successor, which has other partitions."""
    index.owner.begin(1, index.epoch, "n1")
    index.write()
    index.owner.advance(index.epoch, checkpoints({4: 1}))
    victim = index.master_of_blocks()
    index.owner.note_moments(index.epoch, [0, 1], 1000.0)
    on_disk = index.cluster.append_file_size(victim)
    index.write()
    index.owner.advance(index.epoch, checkpoints({4: 2}))
    index.owner.note_moments(index.epoch, [0, 1], 1001.0)
    index.owner.advance(index.epoch, checkpoints({4: 3}))
    unaware, epoch = index.owner, index.epoch
    index.lose_tail(victim, on_disk)
    with pytest.raises(OwnershipLost):
        eventually(lambda: unaware.note_moments(epoch, [0, 1], 1002.0))
    index.heal(1)
    index.note(1003.0)
    successor = index.backend.owner()
    assert successor.begin(1, successor.next_epoch(), "n2").stable[0] == 1


def test_a_record_that_went_back_with_its_master_goes_back_no_further_than_it_must(index):
    index.write()
    index.note(1000.0)
    index.write()
    index.note(1001.0)
    records = index.master_of(index.keys.meta)
    on_disk = index.cluster.append_file_size(records)
    index.write()
    index.lose_tail(records, on_disk)
    index.heal(2)


def test_what_was_compacted_before_a_loss_is_streamed_again_after_a_rollback(index):
    """The compactor's note of it, in the record, may have been lost with the rest."""
    index.write()
    index.write()
    index.note(1000.0)
    records = index.master_of(index.keys.meta)
    on_disk = index.cluster.append_file_size(records)
    index.write()
    index.lose_tail(records, on_disk)
    assert index.begin() == 2
    rolled_back = index.owner.begin(0, index.owner.next_epoch(), "n1", checkpoints({0: 1})[0])
    assert rolled_back.stable[0] == 0
    assert rolled_back.kept[0] == 1


def test_a_counter_of_epochs_that_was_ahead_of_time_and_went_back_hands_out_none_again(index):
    """Row 8: the clock of the server was wrong for a while, and directories name what it handed out then."""
    index.write()
    index.note(1000.0)
    records = index.master_of(index.keys.meta)
    on_disk = index.cluster.append_file_size(records)
    index.cluster.nodes[records].set(index.keys.epoch, index.epoch + 3_600_000)
    index.seqno = index.begin()
    index.write()
    index.note(1001.0)
    ahead = index.epoch
    index.lose_tail(records, on_disk)
    index.heal(1)
    assert index.epoch > ahead


def test_a_master_that_comes_back_empty_is_refused_until_a_rebuild(index):
    index.write()
    index.note(1000.0)
    index.lose_tail(index.master_of_blocks(), 0)
    owner = index.backend.owner()
    epoch = eventually(owner.next_epoch)
    for rollback in ({}, {1: ORIGIN}):
        with pytest.raises(IndexCorrupt, match="channelindex rebuild the whole bucket"):
            owner.begin(0, epoch, "n1", rollback)
    clock = dict.fromkeys(range(META.n_vbuckets), 0)
    assert len(list(rewind_partitions(owner, index.backend.reader(), range(4), clock, "rebuild"))) == 4
    index.heal(0)


def test_a_partition_that_lost_its_timeline_is_refused_until_it_is_repaired(index):
    """Who knows nothing of it can repair it: it alone is indexed again."""
    index.owner.begin(1, index.epoch, "n1")
    index.write()
    index.owner.advance(index.epoch, checkpoints({4: 1}))
    index.owner.note_moments(index.epoch, [0, 1], 1000.0)
    records, victim = index.master_of(index.keys.meta), index.master_of_blocks()
    on_disk = index.cluster.append_file_size(victim)
    assert index.cluster.nodes[records].delete(index.keys.timeline(0)) == 1
    index.write()
    index.lose_tail(victim, on_disk)
    owner = index.backend.owner()
    epoch = eventually(owner.next_epoch)
    with pytest.raises(IndexCorrupt, match="everything of partitions 0: channelindex repair"):
        owner.begin_all({0: {}, 1: {}}, epoch, "n1")
    assert owner.begin(1, epoch, "n1").stable[0] == 1
    assert owner.restore(META).partitions == (0,)
    assert owner.restore(META).partitions == ()
    index.heal(0)
    assert index.backend.reader().partition_records()[1].stable[0] == 1


def test_an_owner_leaves_no_marks_behind_that_no_moment_names(index):
    index.owner.begin_all({1: {}, 2: {}, 3: {}}, index.epoch, "n1")
    for number in range(30):
        index.seqno = index.begin()
        index.owner.begin_all({1: {}, 2: {}, 3: {}}, index.epoch, "n1")
        index.owner.advance(index.epoch, checkpoints({0: number + 1}))
        index.note(1000.0 + number)
    with closing(open_link(index.cluster.url, StoreUnavailable)) as link:
        marks = read_marks(link, index.keys)
    (moments,) = index.backend.reader().timelines([0])
    assert len(moments) < 20
    assert len(marks) == N_SLOTS
    assert all(slot.keys() == {moment.epoch for moment in moments} for slot in marks)
