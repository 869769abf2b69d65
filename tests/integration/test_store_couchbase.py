"""What only a store in a bucket can get wrong: several requests for what Redis does at once, and the SDK's failures."""

import subprocess
import sys
import threading
import time
import uuid
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from couchbase import exceptions as sdk

from channelindex.blocks import HEADER, pack_frame
from channelindex.epochs import new_record
from channelindex.errors import (
    AuthenticationFailed,
    ChannelIndexError,
    ConfigInvalid,
    IndexCorrupt,
    IndexMissing,
    OutcomeUnknown,
    StaleEpoch,
    StoreUnavailable,
    Transient,
)
from channelindex.model import IndexMeta
from channelindex.reading.reader import ChangesReader
from channelindex.settings import IndexSettings
from channelindex.stores import open_owner, open_reader, open_writer
from channelindex.stores.base import Directory, Quarantined
from channelindex.stores.block_writer import BlockWriter, Move
from channelindex.stores.couchbase import link as link_module
from channelindex.stores.couchbase.directories import Directories, DirectoryEntry
from channelindex.stores.couchbase.errors import translate_error, worst
from channelindex.stores.couchbase.keys import Keys
from channelindex.stores.couchbase.link import Link, Stored
from channelindex.stores.couchbase.names import add_names, iter_names
from channelindex.stores.couchbase.owner import CouchbaseOwner
from channelindex.stores.couchbase.reader import CouchbaseReader
from channelindex.stores.couchbase.writer import CouchbaseBlocks
from devbucket import DevBucket, DevBucketConfig
from tests.support.certificates import Certificates
from tests.support.couchbase_faults import FAULTS, FaultyLink
from tests.support.stores import (
    GROUP,
    META,
    Backend,
    all_entries,
    append,
    check_headers,
    checkpoints,
    entry,
    visible_entries,
    write_until_done,
)

NO_RECORDS = [new_record(first_vb, 4) for first_vb in range(0, 16, 4)]


@pytest.fixture
def backend(couchbase_url):
    opened = Backend(couchbase_url, f"test-{uuid.uuid4().hex}")
    yield opened
    opened.close()


@pytest.fixture
def keys(backend):
    return Keys(backend.index_name)


@pytest.fixture
def link(backend):
    return backend.link()


@pytest.fixture
def private_bucket():
    with DevBucket(DevBucketConfig(n_vbuckets=16)) as bucket:
        yield bucket


def settings_for(bucket: DevBucket, **more) -> IndexSettings:
    return IndexSettings("test", bucket.url, **{"user": bucket.user, "password": bucket.password, **more})


# --- failures at every request


def test_a_directory_that_is_gone_stops_the_writer_and_its_block_is_kept(backend):
    """To begin it anew would hide what it said of later blocks, and nobody would ever miss them."""
    backend.writer().write([append("A", 1, entry(0, 1))])
    keys, link = Keys(backend.index_name), backend.link()
    (block,) = link.get([keys.block("A", GROUP, 0)])
    link._opened().remove(keys.directory("A"))
    with pytest.raises(IndexCorrupt, match="directory of group"):
        backend.writer().write([append("A", 1, entry(0, 2))])
    assert link.get([keys.block("A", GROUP, 0)]) == [block]


def test_a_header_that_somebody_left_behind_is_gone_on_with(backend):
    link, keys = backend.link(), Keys(backend.index_name)
    link.insert({keys.block("A", GROUP, 0): pack_frame(HEADER, 1, b"")})
    backend.writer().write([append("A", 2, entry(0, 1))])
    assert [each.seqno for _, each in all_entries(backend.reader(), "A")] == [1]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("every", [17, 19, 23, 31])
def test_every_nth_request_fails_and_nothing_is_lost_or_invented(backend, every, fault):
    """Writer, owner and reader each on a connection that fails so; whoever fails asks again.

    The longest operation takes 16 requests, so each request is struck some time, and no operation for ever.
    """
    links = [FaultyLink(backend.link(), seed=every) for _ in range(3)]
    owner = CouchbaseOwner(backend.settings, links[0])
    writer = BlockWriter(CouchbaseBlocks(backend.settings, links[1]), block_bytes=150)
    reader = CouchbaseReader(backend.settings, links[2])
    for link in links:
        link.every = (every, fault)
    meta = _until_done(lambda: owner.create_or_check(META))
    assert meta == META
    epoch = _until_done(owner.next_epoch)
    assert _until_done(lambda: owner.begin(0, epoch, "n1")).epoch == epoch
    for seqno in range(1, 31):
        batch = [append(channel, epoch, entry(seqno % 4, seqno)) for channel in ("A", "B", f"C{seqno % 5}")]
        write_until_done(writer, batch, ["_sync:user:u"])
        _until_done(lambda seqno=seqno: owner.advance(epoch, checkpoints({seqno % 4: seqno})))
        for late in (late for link in links for late in _taken(link.late)):
            late()
    assert all(link.n_faults for link in links[:2])
    assert set(_until_done(lambda: list(reader.channels()))) == {"A", "B", *(f"C{number}" for number in range(5))}
    for channel in ("A", "B"):
        visible = _until_done(lambda channel=channel: visible_entries(reader, channel))
        assert visible == {entry(seqno % 4, seqno) for seqno in range(1, 31)}
        check_headers(backend.reader(), channel, backend.reader().partition_records(), partition_width=4)
        assert backend.reader().channel_states([channel])[0].counter >= 30
    assert backend.reader().principal_counter("_sync:user:u") >= 30
    with pytest.raises(StaleEpoch):
        _until_done(lambda: owner.advance(epoch - 1, checkpoints({0: 99})))


def _until_done(act):
    for _ in range(200):
        try:
            return act()
        except Transient:
            continue
    raise AssertionError("it never succeeded")


def _taken(items: list[Any]) -> list[Any]:
    taken, items[:] = items[:], []
    return taken


def test_connections_that_are_cut_lose_nothing(private_bucket):
    settings = settings_for(private_bucket, timeout_s=2.0)
    stop = threading.Event()

    def cut():
        while not stop.wait(0.02):
            private_bucket.drop_connections()

    cutter = threading.Thread(target=cut)
    with closing(open_writer(settings)) as writer, closing(open_reader(settings)) as reader:
        writer.write([append("A", 1, entry(0, 1))])
        cutter.start()
        try:
            for seqno in range(2, 40):
                _write_patiently(writer, [append("A", 1, entry(0, seqno)), append(f"B{seqno}", 1, entry(0, seqno))])
        finally:
            stop.set()
            cutter.join()
        assert {each for _, each in all_entries(reader, "A")} == {entry(0, seqno) for seqno in range(1, 40)}
        assert set(reader.channels()) == {"A", *(f"B{seqno}" for seqno in range(2, 40))}


def _write_patiently(writer, appends) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            writer.write(appends)
        except Transient:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def test_a_read_of_which_a_part_fails_is_an_error_and_not_absent(backend, link, monkeypatch):
    link.insert({"a": b"1"})
    collection = link._opened()

    class Half:
        def get_multi(self, keys, options):
            multi = collection.get_multi(keys, options)
            return SimpleNamespace(
                results=multi.results, exceptions=multi.exceptions | {"b": sdk.UnAmbiguousTimeoutException()}
            )

    monkeypatch.setattr(link, "_collection", Half())
    with pytest.raises(StoreUnavailable, match=r"index\.store.*b"):
        link.get(["a", "b", "c"])


# --- what is not atomic


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


def test_who_waits_is_told_at_once_of_what_has_changed_already(backend):
    assert backend.reader().wait_stable(-1, timeout_s=1000) == 0


def test_two_that_create_an_index_of_different_shapes_do_not_mix(backend, link, keys):
    """One wins the meta record; the partition records of the other must not be taken for its own."""
    other = IndexMeta(META.format, META.n_vbuckets, 2, META.source_uuid, "other")
    CouchbaseOwner(backend.settings, _NoMeta(backend.link(), keys.meta)).create_or_check(other)
    backend.owner().create_or_check(META)
    assert [len(record.checkpoints) for record in backend.reader().partition_records()] == [4] * 4


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


# --- what is gone or damaged


def test_a_block_that_is_gone_stops_the_writer_with_its_key(backend, link, keys):
    """To go on in a block without header would hide all before it."""
    backend.owner().create_or_check(META)
    writer = backend.writer()
    writer.write([append("A", 1, entry(0, 1))])
    key = keys.block("A", GROUP, 0)
    link._opened().remove(key)
    for each in (writer, backend.writer()):
        with pytest.raises(IndexCorrupt, match=key):
            each.write([append("A", 1, entry(0, 2))])


@pytest.mark.parametrize("what", ["partition", "directory", "list", "quarantine"])
def test_what_is_damaged_is_named(backend, link, keys, what):
    backend.owner().create_or_check(META)
    backend.owner().quarantine([Quarantined(1, 2, b"k", "r", 3.0)])
    backend.writer().write([append("A", 1, entry(0, 1))])
    reader = backend.reader()
    key, read = {
        "partition": (keys.partition(META, 2), reader.partition_records),
        "directory": (keys.directory("A"), lambda: reader.channel_states(["A"])),
        "list": (keys.list_of("A"), lambda: list(reader.channels())),
        "quarantine": (keys.quarantine, reader.quarantined),
    }[what]
    if what == "partition":
        link._opened().remove(key)
    else:
        (stored,) = link.get([key])
        link.replace({key: Stored(b"\x00\x00\x00\x09damage", stored.cas)})
    with pytest.raises(IndexCorrupt, match=key.replace("=", ".")):
        read()


def test_names_are_listed_once_however_often_they_are_added(link, keys):
    names = ["a", "b" * 1000, "日本", ""]
    for _ in range(3):
        add_names(link, keys, names)
    assert sorted(iter_names(link, keys)) == sorted(names)


# --- keys


@pytest.mark.parametrize("name", ["x" * 100, "x" * 101, "日" * 500, "=", "#" + "0" * 64])
def test_keys_are_short_enough_for_a_collection(name):
    keys = Keys("n" * 64)
    made = [keys.directory(name), keys.block(name, GROUP, 2**64 - 1)]
    made += [keys.principal(name), keys.partition(META, 1023), keys.archive(1023), *keys.lists]
    assert max(len(key.encode()) for key in made) <= 246
    assert len(set(made)) == len(made)


def test_long_names_that_begin_alike_are_kept_apart(backend):
    names = [f"{'x' * 300}{number}" for number in range(3)]
    backend.writer().write([append(name, 1, entry(0, seqno)) for seqno, name in enumerate(names, 1)])
    reader = backend.reader()
    assert sorted(reader.channels()) == names
    assert [[each.seqno for _, each in all_entries(reader, name)] for name in names] == [[1], [2], [3]]


# --- the connection


def test_a_server_that_is_not_there_is_unavailable(monkeypatch):
    monkeypatch.setattr(link_module, "CONNECT_TIMEOUT_S", 0.3)
    settings = IndexSettings("test", "couchbase://127.0.0.1:1/index", user="u", password="hunter2")
    for act in (
        open_owner(settings).next_epoch,
        lambda: open_writer(settings).write([append("A", 1, entry(0, 1))]),
        open_reader(settings).meta,
    ):
        with pytest.raises(StoreUnavailable, match=r"index\.store couchbase://127\.0\.0\.1:1/index") as raised:
            act()
        assert not isinstance(raised.value, OutcomeUnknown)
        assert "hunter2" not in str(raised.value)


def test_a_wrong_password_is_an_authentication_failure(private_bucket):
    with (
        closing(open_reader(settings_for(private_bucket, password="hunter2"))) as reader,
        pytest.raises(AuthenticationFailed, match=r"index\.user, index\.password") as raised,
    ):
        reader.meta()
    assert "hunter2" not in str(raised.value)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    return Certificates.make(tmp_path_factory.mktemp("certificates"))


def test_tls_is_spoken_with_a_server_that_the_ca_file_knows(certificates):
    with DevBucket(DevBucketConfig(n_vbuckets=16, tls=certificates.server())) as bucket:
        settings = replace(settings_for(bucket), store=bucket.tls_url, ca_file=certificates.path("ca.pem"))
        with closing(open_writer(settings)) as writer, closing(open_reader(settings)) as reader:
            writer.write([append("A", 1, entry(0, 1))])
            assert {each for _, each in all_entries(reader, "A")} == {entry(0, 1)}


def test_tls_with_a_stranger_is_refused(certificates, monkeypatch):
    monkeypatch.setattr(link_module, "CONNECT_TIMEOUT_S", 1.0)
    with DevBucket(DevBucketConfig(n_vbuckets=16, tls=certificates.server())) as bucket:
        settings = replace(settings_for(bucket), store=bucket.tls_url, ca_file=certificates.path("strangers-ca.pem"))
        with closing(open_reader(settings)) as reader, pytest.raises(StoreUnavailable, match="couchbases://"):
            reader.meta()


def test_the_index_lies_in_the_collection_that_is_configured():
    with DevBucket(DevBucketConfig(n_vbuckets=16, collections=("channels.index", "channels.other"))) as bucket:
        index, other = (settings_for(bucket, scope="channels", collection=name) for name in ("index", "other"))
        with closing(open_owner(index)) as owner, closing(open_writer(index)) as writer:
            owner.create_or_check(META)
            writer.write([append("x" * 300, 1, entry(0, 1))])
        with closing(open_reader(index)) as reader, closing(open_reader(other)) as elsewhere:
            assert reader.meta() == META
            assert list(reader.channels()) == ["x" * 300]
            assert list(elsewhere.channels()) == []
            with pytest.raises(IndexMissing):
                elsewhere.meta()


def test_a_collection_that_is_not_there_is_named():
    with DevBucket(DevBucketConfig(n_vbuckets=16, collections=("channels.index",))) as bucket:
        settings = settings_for(bucket, scope="channels", collection="absent", timeout_s=1.0)
        with closing(open_reader(settings)) as reader, pytest.raises(ChannelIndexError, match=r"channels\.absent"):
            reader.meta()


def test_vbuckets_that_move_between_nodes_lose_nothing():
    with DevBucket(DevBucketConfig(n_vbuckets=16, n_nodes=3)) as bucket:
        settings = settings_for(bucket, timeout_s=5.0)
        with closing(open_writer(settings)) as writer, closing(open_reader(settings)) as reader:
            for seqno in range(1, 31):
                _write_patiently(writer, [append("A", 1, entry(0, seqno)), append(f"B{seqno}", 1, entry(0, seqno))])
                if seqno % 5 == 0:
                    bucket.move(range(seqno % 16, 16), seqno // 5 % 3)
            assert {each for _, each in all_entries(reader, "A")} == {entry(0, seqno) for seqno in range(1, 31)}
            assert set(reader.channels()) == {"A", *(f"B{seqno}" for seqno in range(1, 31))}


def test_a_node_that_is_away_makes_the_store_unavailable_and_nothing_absent():
    with DevBucket(DevBucketConfig(n_vbuckets=16, n_nodes=2)) as bucket:
        settings = settings_for(bucket, timeout_s=1.0)
        with closing(open_owner(settings)) as owner, closing(open_reader(settings)) as reader:
            owner.create_or_check(META)
            reader.partition_records()
            bucket.stop_node(1)
            with pytest.raises(StoreUnavailable):
                list(reader.channels())
            bucket.start_node(1)
            _until_done(lambda: list(reader.channels()))
            assert len(_until_done(reader.partition_records)) == META.n_partitions


def test_a_document_that_would_be_too_large_names_what_to_lower(backend, link):
    link.insert({f"{backend.index_name}:big": b"x" * (20 << 20)})
    with pytest.raises(ConfigInvalid, match=r"index\.block_bytes and workers\.batch_bytes"):
        link.append({f"{backend.index_name}:big": b"x"})


@pytest.mark.parametrize("level", ["none", "majority", "majority_and_persist_to_active", "persist_to_majority"])
def test_every_level_of_durability_is_asked_for(private_bucket, level):
    with closing(Link(settings_for(private_bucket, durability=level))) as link:
        assert link.insert({"a": b""}) == set()
        assert link.append({"a": b"1"}) == set()
        assert link.increment({"n": 2}) == {"n": 2}
        (stored,) = link.get(["a"])
        assert stored
        assert link.replace({"a": Stored(b"2", stored.cas)}) == set()
        assert link.replace({"a": Stored(b"3", stored.cas)}) == {"a"}


@pytest.mark.parametrize("exists", [False, True], ids=["new", "existing"])
def test_a_server_that_closes_on_durable_writes_is_told_by_the_setting(private_bucket, exists):
    if exists:
        with closing(CouchbaseOwner(settings_for(private_bucket))) as owner:
            owner.create_or_check(META)
    private_bucket.refuse_sync_writes(on=True)
    with closing(CouchbaseOwner(settings_for(private_bucket))) as owner, pytest.raises(ConfigInvalid) as refused:
        owner.create_or_check(META)
    assert "index.durability = 'majority'" in str(refused.value)
    with closing(CouchbaseOwner(settings_for(private_bucket, durability="none"))) as owner:
        assert owner.create_or_check(META).n_partitions == META.n_partitions


def test_a_connection_that_is_lost_is_no_server_without_durability(private_bucket, monkeypatch):
    with closing(Link(settings_for(private_bucket))) as link:
        link.insert({"a": b"1"})
        private_bucket.refuse_sync_writes(on=True)
        monkeypatch.setattr(time, "sleep", lambda _: private_bucket.refuse_sync_writes(on=False))
        link.check_durability("a")
        assert [stored and stored.value for stored in link.get(["a"])] == [b"1"]


def test_many_documents_go_in_several_calls(backend, link, monkeypatch):
    monkeypatch.setattr(link_module, "MAX_CALL_DOCUMENTS", 7)
    values = {f"{backend.index_name}:{number}": b"%d" % number for number in range(40)}
    assert link.insert(values) == set()
    assert link.insert(values) == set(values)
    assert link.append({**values, "absent": b""}) == {"absent"}
    assert [stored.value for stored in link.get(list(values))] == [value * 2 for value in values.values()]


def test_a_closed_connection_leaves_no_thread_and_is_made_anew(private_bucket):
    code = """
import os, sys, time
from channelindex.settings import IndexSettings
from channelindex.stores import open_owner
owner = open_owner(IndexSettings("test", sys.argv[1], user=sys.argv[2], password=sys.argv[3]))
last = 0
for _ in range(2):
    last, before = owner.next_epoch(), last
    assert last > before
    owner.close()
    owner.close()
    deadline = time.monotonic() + 30.0
    while len(os.listdir("/proc/self/task")) > 1:  # the SDK's threads end a moment after it says so
        assert time.monotonic() < deadline, os.listdir("/proc/self/task")
        time.sleep(0.01)
"""
    arguments = [private_bucket.url, private_bucket.user, private_bucket.password]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, cwd=Path(__file__).parents[2], timeout=60)


def test_users_of_redis_do_not_pay_for_the_sdk():
    code = """
import sys
import workers.cli
from channelindex.reading.reader import ChangesReader
from channelindex.settings import IndexSettings
from channelindex.stores import open_owner, open_reader, open_writer
for opener in (open_owner, open_reader, open_writer):
    opener(IndexSettings("test", "redis://127.0.0.1:1/0"))
assert not any(name.partition(".")[0] == "couchbase" for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2], timeout=60)


# --- what the SDK's errors mean


@pytest.mark.parametrize(
    ("error", "of_a_change", "of_a_read"),
    [
        (sdk.UnAmbiguousTimeoutException(), StoreUnavailable, StoreUnavailable),
        (sdk.AmbiguousTimeoutException(), OutcomeUnknown, StoreUnavailable),
        (sdk.TimeoutException(), OutcomeUnknown, StoreUnavailable),
        (sdk.TemporaryFailException(), StoreUnavailable, StoreUnavailable),
        (sdk.RequestCanceledException(), OutcomeUnknown, StoreUnavailable),
        (sdk.DurabilitySyncWriteAmbiguousException(), OutcomeUnknown, StoreUnavailable),
        (sdk.DurabilityImpossibleException(), StoreUnavailable, StoreUnavailable),
        (sdk.InternalServerFailureException(), OutcomeUnknown, StoreUnavailable),
        (sdk.CouchbaseException(), OutcomeUnknown, StoreUnavailable),
        (sdk.AuthenticationException(), AuthenticationFailed, AuthenticationFailed),
        (sdk.CollectionNotFoundException(), ConfigInvalid, ConfigInvalid),
        (sdk.DeltaInvalidException(), IndexCorrupt, IndexCorrupt),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_an_error_of_the_sdk_means(error, of_a_change, of_a_read):
    assert type(translate_error("couchbase://h/b", "key", error, changes=True)) is of_a_change
    assert type(translate_error("couchbase://h/b", "key", error, changes=False)) is of_a_read


def test_a_write_that_the_sdk_cancels_names_the_setting_that_may_be_why():
    error = translate_error("couchbase://h/b", "key", sdk.RequestCanceledException(), changes=True)
    assert 'set index.durability = "none"' in str(error)
    assert "durability" not in str(translate_error("u", "key", sdk.RequestCanceledException(), changes=False))


def test_of_many_errors_the_one_that_asking_again_does_not_cure_counts():
    refused, unknown, wrong = StoreUnavailable("a"), OutcomeUnknown("b"), ConfigInvalid("c")
    assert worst([refused, unknown, wrong], n_done=0) is wrong
    assert worst([refused, unknown], n_done=0) is unknown
    assert worst([refused], n_done=0) is refused
    assert type(worst([refused], n_done=1)) is OutcomeUnknown
