"""The connection of a store in a bucket: servers, accounts, TLS, durability, nodes; and what the SDK's errors mean."""

import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from couchbase import exceptions as sdk

from channelindex.errors import (
    AuthenticationFailed,
    ChannelIndexError,
    ConfigInvalid,
    IndexCorrupt,
    IndexMissing,
    OutcomeUnknown,
    StoreUnavailable,
    Transient,
)
from channelindex.settings import IndexSettings
from channelindex.stores import open_owner, open_reader, open_writer
from channelindex.stores.couchbase import link as link_module
from channelindex.stores.couchbase.errors import translate_error, worst
from channelindex.stores.couchbase.link import Link, Stored
from channelindex.stores.couchbase.owner import CouchbaseOwner
from devbucket import DevBucket, DevBucketConfig
from tests.support.certificates import Certificates
from tests.support.stores import META, all_entries, append, entry, until_done


@pytest.fixture
def private_bucket():
    with DevBucket(DevBucketConfig(n_vbuckets=16)) as bucket:
        yield bucket


def settings_for(bucket: DevBucket, **more) -> IndexSettings:
    return IndexSettings("test", bucket.url, **{"user": bucket.user, "password": bucket.password, **more})


# --- the connection


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
            until_done(lambda: list(reader.channels()))
            assert len(until_done(reader.partition_records)) == META.n_partitions


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
def test_a_server_that_closes_on_durable_writes_is_reported_by_the_setting(private_bucket, exists):
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
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, cwd=Path(__file__).parents[3], timeout=60)


def test_users_of_redis_do_not_pay_for_the_sdk():
    code = """
import sys
import workers.cli
from channelindex.reading.changes_reader import ChangesReader
from channelindex.settings import IndexSettings
from channelindex.stores import open_owner, open_reader, open_writer
for opener in (open_owner, open_reader, open_writer):
    opener(IndexSettings("test", "redis://127.0.0.1:1/0"))
assert not any(name.partition(".")[0] == "couchbase" for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3], timeout=60)


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
