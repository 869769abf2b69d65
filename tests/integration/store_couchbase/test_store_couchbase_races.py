"""What takes a store in a bucket several requests, and Redis one: somebody is faster between two of them, or late."""

import threading

import pytest

from channelindex.blocks import HEADER, pack_frame
from channelindex.epochs import new_record
from channelindex.errors import IndexMismatch, StaleEpoch
from channelindex.model import IndexMeta
from channelindex.reading.changes_reader import ChangesReader
from channelindex.stores.base import Directory
from channelindex.stores.block_writer import BlockWriter, Move
from channelindex.stores.couchbase.directories import Directories, DirectoryEntry
from channelindex.stores.couchbase.link import Link, Stored
from channelindex.stores.couchbase.owner import CouchbaseOwner
from channelindex.stores.couchbase.writer import CouchbaseBlocks
from tests.support.couchbase_faults import FaultyLink
from tests.support.stores import GROUP, META, all_entries, append, check_headers, checkpoints, entry

NO_RECORDS = [new_record(first_vb, 4) for first_vb in range(0, 16, 4)]


def test_a_rotation_that_stopped_after_the_next_block_is_made_anew(backend, link, keys):
    """The header that it left behind says too little by now; whoever rotates next has to replace it."""
    writer = backend.writer(block_bytes=1)
    writer.write([append("A", 1, entry(0, 1))])
    link.insert({keys.block("A", GROUP, 1): pack_frame(HEADER, 1, b"")})
    writer.write([append("A", 1, entry(0, 2))])
    check_headers(backend.reader(), "A", NO_RECORDS, partition_width=4)
    assert [seqno for _, (_, seqno, *_) in all_entries(backend.reader(), "A")] == [1, 2]


def test_a_late_request_to_start_a_block_cannot_empty_the_active_one(backend, link, keys):
    """Of a rotation that was given up, its insert and its replacement of a header that was left over."""
    link.insert({keys.block("A", GROUP, 1): b"left over"})
    (left_over,) = link.get([keys.block("A", GROUP, 1)])
    writer = backend.writer(block_bytes=1)
    for seqno in (1, 2):
        writer.write([append("A", 1, entry(0, seqno))])
    late = pack_frame(HEADER, 1, b"")
    assert link.insert({keys.block("A", GROUP, 1): late}) == {keys.block("A", GROUP, 1)}
    assert link.replace({keys.block("A", GROUP, 1): Stored(late, left_over.cas)}) == {keys.block("A", GROUP, 1)}
    assert [seqno for _, (_, seqno, *_) in all_entries(backend.reader(), "A")] == [1, 2]


def test_locating_a_block_makes_every_earlier_version_of_the_directory_worthless(backend, link, keys):
    """It says the same as before; a late request to move the active block must not happen all the same."""
    backend.writer().write([append("A", 1, entry(0, 1))])
    directories = Directories(link, keys)
    before = directories.read(["A"])
    backend.writer().write([append("A", 1, entry(0, 2))])
    assert directories.read(["A"])["A"].directory == before["A"].directory
    before["A"].directory.active_by_group[GROUP] = DirectoryEntry(1, 1, 0)
    assert directories.write(before) == {"A"}


@pytest.mark.parametrize("step", ["next block", "directory"])
def test_a_rotation_does_not_happen_if_somebody_was_faster_at_any_step(backend, step):
    """Somebody locates the block under a newer epoch and rotates, while we are between two requests."""
    faster = backend.writer(block_bytes=1)

    def be_faster():
        for seqno in (2, 3):
            faster.write([append("A", 2, entry(0, seqno))])

    link = _Paused(backend.link(), _STEPS[step], be_faster)
    writer = BlockWriter(CouchbaseBlocks(backend.settings, link), block_bytes=1)
    writer.write([append("A", 1, entry(0, 1))])
    link.armed = True
    assert writer.write([append("A", 1, entry(0, 9))]) == {1}
    reader = backend.reader()
    assert reader.channel_states(["A"])[0].active_by_group == {GROUP: 1}
    assert [(epoch, seqno) for epoch, (_, seqno, *_) in all_entries(reader, "A")] == [(1, 1), (2, 2), (2, 3)]
    check_headers(reader, "A", NO_RECORDS, partition_width=4)


def test_a_stale_rotation_does_not_touch_a_block_that_has_become_the_active_one(backend, link, keys):
    writer = backend.writer(block_bytes=1)
    for seqno in (1, 2):
        writer.write([append("A", 1, entry(0, seqno))])
    (full,) = link.get([keys.block("A", GROUP, 0)])
    known, header = Directory(0, 1, 0, 17), pack_frame(HEADER, 1, b"")
    stale = Move("A", GROUP, known, Directory(1, 1, len(full.value), len(header)), header)
    assert backend.operations().move([stale]) == [False]
    assert [seqno for _, (_, seqno, *_) in all_entries(backend.reader(), "A")] == [1, 2]


def test_a_header_that_comes_late_while_we_rotate_is_not_taken_for_ours(backend, link, keys):
    late = {keys.block("A", GROUP, 1): pack_frame(HEADER, 1, b"")}
    paused = _Paused(backend.link(), ("insert", 1), lambda: link.insert(late))
    writer = BlockWriter(CouchbaseBlocks(backend.settings, paused), block_bytes=1)
    writer.write([append("A", 1, entry(0, 1))])
    paused.armed = True
    for seqno in (2, 3, 4):
        writer.write([append("A", 1, entry(0, seqno))])
    assert backend.reader().channel_states(["A"])[0].active_by_group[GROUP] > 0
    check_headers(backend.reader(), "A", NO_RECORDS, partition_width=4)


def test_what_a_zombie_appends_while_we_rotate_is_there_already_or_dead(backend):
    """It comes too late for the header. A reader needs none of it."""
    owner = backend.owner()
    owner.create_or_check(META)
    owner.begin(0, 1, "n1")
    zombie, reader = backend.writer(), ChangesReader(backend.reader())
    zombie.write([append("A", 1, entry(1, 1, "live"))])
    owner.advance(1, checkpoints({1: 1}))
    owner.begin(0, 2, "n2")
    late = append("A", 1, entry(1, 1, "live"), entry(1, 7, "dead"))
    paused = _Paused(backend.link(), ("insert", 1), lambda: zombie.write([late]))
    writer = BlockWriter(CouchbaseBlocks(backend.settings, paused), block_bytes=1)
    writer.write([append("A", 2, entry(0, 2))])
    since = reader.changes(["A"]).since
    paused.armed = True
    writer.write([append("A", 2, entry(0, 3), entry(1, 7, "new"))])
    owner.advance(2, checkpoints({0: 3, 1: 7}))
    assert backend.reader().channel_states(["A"])[0].active_by_group == {GROUP: 1}
    assert {each.seqno for _, each in all_entries(backend.reader(), "A")} == {1, 2, 3, 7}
    check_headers(backend.reader(), "A", backend.reader().partition_records(), partition_width=4)
    assert [change.id for change in reader.changes(["A"], since).entries] == ["doc-0-2", "doc-0-3", "new"]


def test_an_owner_that_begins_while_we_do_is_not_overwritten(backend):
    backend.owner().create_or_check(META)
    paused = _Paused(backend.link(), ("replace", 1), lambda: backend.owner().begin(0, 9, "faster"))
    paused.armed = True
    with pytest.raises(StaleEpoch):
        CouchbaseOwner(backend.settings, paused).begin(0, 8, "slower")
    assert backend.reader().partition_records()[0].owner == "faster"


def test_an_owner_that_is_replaced_while_it_advances_does_not_move_the_clock(backend):
    owner = backend.owner()
    owner.create_or_check(META)
    owner.begin(0, 8, "slower")
    paused = _Paused(backend.link(), ("replace", 1), lambda: owner.begin(0, 9, "faster"))
    paused.armed = True
    with pytest.raises(StaleEpoch):
        CouchbaseOwner(backend.settings, paused).advance(8, checkpoints({0: 5}))
    record = backend.reader().partition_records()[0]
    assert (record.epoch, record.stable) == (9, (0, 0, 0, 0))


_STEPS = {"next block": ("insert", 1), "directory": ("replace", 1)}
"""Before which request of a rotation, counted by name."""


class _Paused(FaultyLink):
    """Lets something happen just before one request that is not empty."""

    def __init__(self, link: Link, request: tuple[str, int], act) -> None:
        super().__init__(link)
        self.armed = False
        self._name, self._left = request
        self._act = act

    def get(self, keys):
        self._pause("get", keys)
        return super().get(keys)

    def insert(self, values):
        self._pause("insert", values)
        return super().insert(values)

    def replace(self, values):
        self._pause("replace", values)
        return super().replace(values)

    def _pause(self, name, values):
        if self.armed and values and name == self._name:
            self._left -= 1
            if self._left == 0:
                self._act()


def test_groups_of_a_channel_that_begin_at_the_same_time_are_all_there(backend):
    """They share a directory, and each has to find the others' changes."""
    groups = [f"{number:016x}" for number in range(6)]
    writers = [backend.writer(block_bytes=120) for _ in groups]

    def write(writer, group):
        for seqno in range(1, 9):
            writer.write([append("A", 1, entry(0, seqno), group=group)])

    threads = [threading.Thread(target=write, args=pair) for pair in zip(writers, groups, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reader = backend.reader()
    assert set(reader.channel_states(["A"])[0].active_by_group) == set(groups)
    assert len(all_entries(reader, "A")) == 6 * 8
    check_headers(reader, "A", NO_RECORDS, partition_width=4)


def test_a_directory_that_somebody_else_has_made_meanwhile_is_completed(backend):
    """Both groups saw a channel that nobody had written; the third insert of a first append is the directory."""
    other = "ffeeddcc99887766"

    def be_faster():
        backend.writer().write([append("A", 1, entry(9, 1), group=other)])

    paused = _Paused(backend.link(), ("insert", 3), be_faster)
    paused.armed = True
    BlockWriter(CouchbaseBlocks(backend.settings, paused), block_bytes=100).write([append("A", 1, entry(0, 1))])
    reader = backend.reader()
    assert reader.channel_states(["A"])[0].active_by_group == {GROUP: 0, other: 0}
    assert {each for _, each in all_entries(reader, "A")} == {entry(0, 1), entry(9, 1)}


def test_who_waits_learns_at_once_of_what_has_changed_already(backend):
    assert backend.reader().wait_stable(-1, timeout_s=1000) == 0


def test_an_index_that_another_node_makes_and_writes_meanwhile_has_lost_nothing(backend):
    """Just after we found no meta record; its records have epochs by then."""

    def be_faster():
        faster = backend.owner()
        faster.create_or_check(META)
        faster.begin(0, 1, "n1")

    paused = _Paused(backend.link(), ("get", 2), be_faster)
    paused.armed = True
    assert CouchbaseOwner(backend.settings, paused).create_or_check(META) == META
    assert backend.reader().partition_records()[0].epoch == 1, "it was faster"


def test_two_that_create_an_index_of_different_shapes_do_not_mix(backend, link, keys):
    """One wins the meta record; the partition records of the other must not be taken for its own."""
    other = IndexMeta(META.format, META.n_vbuckets, 2, META.source_uuid, "other")
    CouchbaseOwner(backend.settings, _NoMeta(backend.link(), keys.meta)).create_or_check(other)
    backend.owner().create_or_check(META)
    assert [len(record.checkpoints) for record in backend.reader().partition_records()] == [4] * 4


def test_lost_meta_record_is_not_written_anew_in_another_shape(backend, link, keys):
    backend.owner().create_or_check(META)
    link._opened().remove(keys.meta)
    other = IndexMeta(META.format, META.n_vbuckets, 2, META.source_uuid, "other")
    with pytest.raises(IndexMismatch, match=r"of 4 vbuckets, and index.partitions = 2 expects 8: .*partitions = 4"):
        backend.owner().restore(other)
    assert backend.owner().restore(META) == (META, True, ())


class _NoMeta(FaultyLink):
    """Stops just before the meta record is stored; tells of one that is not there."""

    def __init__(self, link: Link, meta_key: str) -> None:
        super().__init__(link)
        self._meta_key = meta_key
        self._meta: dict[str, bytes] = {}

    def insert(self, values):
        if self._meta_key in values:
            self._meta = dict(values)
            return set()
        return super().insert(values)

    def get(self, keys):
        if keys == [self._meta_key] and self._meta:
            return [Stored(self._meta[self._meta_key], 1)]
        return super().get(keys)
