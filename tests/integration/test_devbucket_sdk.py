"""The official SDK works against the dev bucket: bootstrap, documents, sub-documents, durability, many keys at once."""

import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import couchbase.subdocument as sd
import pytest
from couchbase import exceptions
from couchbase.auth import PasswordAuthenticator
from couchbase.bucket import Bucket
from couchbase.cluster import Cluster
from couchbase.collection import Collection
from couchbase.diagnostics import PingState, ServiceType
from couchbase.durability import ClientDurability, Durability, PersistTo, ReplicateTo, ServerDurability
from couchbase.options import (
    AppendOptions,
    ClusterOptions,
    ClusterTimeoutOptions,
    DecrementOptions,
    DeltaValue,
    GetMultiOptions,
    GetOptions,
    IncrementOptions,
    MutateInOptions,
    RemoveOptions,
    ReplaceOptions,
    SignedInt64,
    UpsertMultiOptions,
    UpsertOptions,
    WaitUntilReadyOptions,
)
from couchbase.transcoder import RawBinaryTranscoder

from devbucket import DevBucket, DevBucketConfig

TIMEOUT = timedelta(seconds=60)
MINUTE = timedelta(minutes=1)
RAW = RawBinaryTranscoder()


@pytest.fixture(scope="module")
def running() -> Iterator[DevBucket]:
    with DevBucket(DevBucketConfig(n_vbuckets=64)) as bucket:
        yield bucket


def connect(running: DevBucket) -> Cluster:
    timeouts = ClusterTimeoutOptions(bootstrap_timeout=TIMEOUT, kv_timeout=TIMEOUT, kv_durable_timeout=TIMEOUT)
    login = PasswordAuthenticator(running.user, running.password)
    return Cluster(running.cluster_url, ClusterOptions(login, timeout_options=timeouts))


@pytest.fixture(scope="module")
def cluster(running: DevBucket) -> Iterator[Cluster]:
    connected = connect(running)
    yield connected
    connected.close()


@pytest.fixture(scope="module")
def bucket(cluster: Cluster) -> Bucket:
    return cluster.bucket("default")


@pytest.fixture
def documents(bucket: Bucket, request: pytest.FixtureRequest) -> tuple[Collection, str]:
    """The collection, and a key that no other test uses."""
    return bucket.default_collection(), request.node.name


def test_bucket_is_ready_and_pings(cluster, bucket):
    options = WaitUntilReadyOptions(service_types=[ServiceType.KeyValue])
    cluster.wait_until_ready(TIMEOUT, options)
    pings = bucket.ping().endpoints[ServiceType.KeyValue]
    assert [ping.state for ping in pings] == [PingState.OK]


def test_document_is_stored_read_and_removed(documents):
    docs, key = documents
    token = docs.upsert(key, {"n": 1}).mutation_token()
    assert token is not None
    assert docs.get(key).content_as[dict] == {"n": 1}
    assert docs.exists(key).exists
    docs.remove(key)
    assert not docs.exists(key).exists
    with pytest.raises(exceptions.DocumentNotFoundException):
        docs.get(key)
    with pytest.raises(exceptions.DocumentNotFoundException):
        docs.remove(key)


def test_insert_and_replace_look_at_what_is_there(documents):
    docs, key = documents
    with pytest.raises(exceptions.DocumentNotFoundException):
        docs.replace(key, {})
    inserted = docs.insert(key, {"n": 1})
    with pytest.raises(exceptions.DocumentExistsException):
        docs.insert(key, {})
    docs.replace(key, {"n": 2}, ReplaceOptions(cas=inserted.cas))
    with pytest.raises(exceptions.CasMismatchException):
        docs.replace(key, {"n": 3}, ReplaceOptions(cas=inserted.cas))
    with pytest.raises(exceptions.CasMismatchException):
        docs.remove(key, RemoveOptions(cas=inserted.cas))
    assert docs.get(key).value == {"n": 2}


def test_binary_documents_grow_at_both_ends(documents):
    docs, key = documents
    with pytest.raises(exceptions.DocumentNotFoundException):
        docs.binary().append(key, b"x")
    docs.upsert(key, b"\0b", UpsertOptions(transcoder=RAW))
    docs.binary().append(key, b"c\xff")
    docs.binary().prepend(key, b"a")
    assert docs.get(key, GetOptions(transcoder=RAW)).value == b"a\0bc\xff"


def test_counters(documents):
    docs, key = documents
    assert docs.binary().increment(key, IncrementOptions(initial=SignedInt64(5))).content == 5
    assert docs.binary().increment(key, IncrementOptions(delta=DeltaValue(3))).content == 8
    assert docs.binary().decrement(key, DecrementOptions(delta=DeltaValue(30))).content == 0


def test_expiry_is_set_kept_and_shown(documents):
    docs, key = documents
    docs.upsert(key, {}, UpsertOptions(expiry=MINUTE))
    expires = docs.get(key, GetOptions(with_expiry=True)).expiry_time
    docs.upsert(key, {"n": 1}, UpsertOptions(preserve_expiry=True))
    assert docs.get(key, GetOptions(with_expiry=True)).expiry_time == expires
    assert docs.get_and_touch(key, timedelta(hours=1)).content_as[dict] == {"n": 1}
    assert docs.get(key, GetOptions(with_expiry=True)).expiry_time > expires
    docs.upsert(key, {})
    assert docs.get(key, GetOptions(with_expiry=True)).expiry_time is None


def test_locked_document_can_be_changed_with_its_cas_only(documents):
    docs, key = documents
    docs.upsert(key, {"n": 1})
    locked = docs.get_and_lock(key, timedelta(seconds=10))
    with pytest.raises(exceptions.DocumentLockedException):
        docs.upsert(key, {}, UpsertOptions(timeout=timedelta(seconds=1)))
    assert docs.get(key).value == {"n": 1}
    docs.unlock(key, locked.cas)
    docs.upsert(key, {"n": 2})
    again = docs.get_and_lock(key, timedelta(seconds=10))
    docs.replace(key, {"n": 3}, ReplaceOptions(cas=again.cas))
    docs.upsert(key, {"n": 4})


CHANGES: list[tuple[str, Callable[[Collection, str, ServerDurability], object]]] = [
    ("upsert", lambda docs, key, durability: docs.upsert(key, {}, UpsertOptions(durability=durability))),
    ("remove", lambda docs, key, durability: docs.remove(key, RemoveOptions(durability=durability))),
    ("append", lambda docs, key, durability: docs.binary().append(key, b"x", AppendOptions(durability=durability))),
    (
        "subdocument",
        lambda docs, key, durability: docs.mutate_in(key, [sd.upsert("n", 2)], MutateInOptions(durability=durability)),
    ),
]


@pytest.mark.parametrize("level", [Durability.MAJORITY, Durability.PERSIST_TO_MAJORITY])
@pytest.mark.parametrize(("_name", "change"), CHANGES)
def test_changes_are_durable_at_every_level(documents, level, _name, change):
    docs, key = documents
    docs.upsert(key, {"n": 1})
    assert change(docs, key, ServerDurability(level)).cas


def test_replica_that_is_not_there_makes_durability_impossible(documents):
    docs, key = documents
    with pytest.raises(exceptions.DurabilityImpossibleException):
        docs.upsert(key, {}, UpsertOptions(durability=ClientDurability(ReplicateTo.ONE, PersistTo.NONE)))


def test_subdocument_reads(documents):
    docs, key = documents
    docs.upsert(key, {"a": {"b": [1, 2, 3]}, "n": 5})
    found = docs.lookup_in(
        key, [sd.get("a.b"), sd.exists("n"), sd.count("a.b"), sd.get("a.b[1]"), sd.get("a.b[-1]"), sd.exists("none")]
    )
    assert [found.content_as[lambda value: value](at) for at in range(5)] == [[1, 2, 3], True, 3, 2, 3]
    assert found.exists(1)
    assert not found.exists(5)


def test_subdocument_changes(documents):
    docs, key = documents
    docs.upsert(key, {"old": 1, "n": 5})
    docs.mutate_in(key, [sd.upsert("x.y", 1, create_parents=True), sd.replace("n", 6), sd.remove("old")])
    docs.mutate_in(
        key,
        [
            sd.array_append("list", 1, 2, create_parents=True),
            sd.array_prepend("list", 0),
            sd.array_addunique("list", 9),
            sd.array_insert("list[1]", 7),
        ],
    )
    counted = docs.mutate_in(key, [sd.increment("count", 5), sd.decrement("count", 2)])
    assert [counted.content_as[int](at) for at in range(2)] == [5, 3]
    assert docs.get(key).value == {"n": 6, "x": {"y": 1}, "list": [0, 7, 1, 2, 9], "count": 3}
    with pytest.raises(exceptions.PathExistsException):
        docs.mutate_in(key, [sd.array_addunique("list", 9)])
    with pytest.raises(exceptions.PathNotFoundException):
        docs.mutate_in(key, [sd.replace("none", 1)])


def test_xattrs_and_macros(documents):
    docs, key = documents
    docs.upsert(key, {})
    changed = docs.mutate_in(
        key,
        [
            sd.upsert("_sync.n", 1, xattr=True, create_parents=True),
            sd.upsert("_sync.cas", sd.MutationMacro.cas(), xattr=True),
        ],
    )
    found = docs.lookup_in(key, [sd.get("_sync", xattr=True), sd.get("$document.CAS", xattr=True)])
    assert found.content_as[dict](0) == {"n": 1, "cas": f"0x{changed.cas.to_bytes(8, 'little').hex()}"}
    assert found.content_as[str](1) == f"0x{changed.cas:016x}"


def test_many_keys_at_once(documents):
    docs, key = documents
    names = [f"{key}{i}" for i in range(100)]
    assert docs.upsert_multi(dict.fromkeys(names, b"x"), UpsertMultiOptions(transcoder=RAW)).all_ok
    assert docs.binary().append_multi(dict.fromkeys(names, b"y")).all_ok
    found = docs.get_multi([*names, "none"], GetMultiOptions(transcoder=RAW, return_exceptions=True))
    assert {result.value for result in found.results.values()} == {b"xy"}
    assert isinstance(found.exceptions["none"], exceptions.DocumentNotFoundException)
    assert docs.remove_multi(names).all_ok
    assert docs.binary().increment_multi(names).all_ok


def test_megabytes_in_one_document(documents):
    docs, key = documents
    docs.upsert(key, b"x" * 3_000_000, UpsertOptions(transcoder=RAW))
    assert len(docs.get(key, GetOptions(transcoder=RAW)).value) == 3_000_000


def test_wrong_password_is_refused(running):
    timeouts = ClusterTimeoutOptions(bootstrap_timeout=timedelta(seconds=2))
    login = PasswordAuthenticator(running.user, "wrong")
    with pytest.raises((exceptions.AuthenticationException, exceptions.UnAmbiguousTimeoutException)):
        Cluster(running.cluster_url, ClusterOptions(login, timeout_options=timeouts))


def test_documents_are_found_while_vbuckets_move_between_nodes():
    with DevBucket(DevBucketConfig(n_vbuckets=16, n_nodes=3)) as running:
        cluster = connect(running)
        docs = cluster.bucket("default").default_collection()
        steps: list[Callable[[], None]] = [
            lambda: None,
            lambda: running.move(range(8), node=2),
            lambda: running.failover_node(2),
            lambda: running.start_node(2),
            running.rebalance,
        ]
        for step in steps:
            step()
            deadline = time.monotonic() + TIMEOUT.total_seconds()
            while not docs.upsert_multi({f"k{i}": {"i": i} for i in range(64)}).all_ok:
                assert time.monotonic() < deadline  # what was on its way to a node that failed may have got there
            assert docs.get_multi([f"k{i}" for i in range(64)]).all_ok
        assert [node["vbuckets"] for node in running.nodes()] == [6, 5, 5]
        cluster.close()
