"""A dev bucket with collections: what a client sees that knows them, and one that does not."""

import json
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from couchbase.auth import PasswordAuthenticator
from couchbase.cluster import Cluster
from couchbase.exceptions import DocumentNotFoundException
from couchbase.options import ClusterOptions

from channelindex.errors import ConfigInvalid
from channelindex.feeds.dcp.connstr import parse_source_url
from channelindex.feeds.dcp.kv import KvClient
from channelindex.mcbp import Feature, Frame, Op, Status, pack_leb128
from devbucket import DevBucket, DevBucketConfig
from devbucket.manifest import CollectionManifest, split_key
from devbucket.replies import Malformed, Refused
from tests.support.dcp_reading import ADMIN, Reading
from tests.support.mcbp_client import RawClient, Writer

SHOP, ORDERS, RETURNS = 8, 9, 10


def config(file: Path | None = None) -> DevBucketConfig:
    return DevBucketConfig(n_vbuckets=2, collections=("shop.orders", "shop.returns"), file=file)


@pytest.fixture
def bucket() -> Iterator[DevBucket]:
    with DevBucket(config()) as running:
        yield running


@pytest.fixture
def connect(bucket: DevBucket):
    opened: list[RawClient] = []

    def connected(*features: int) -> RawClient:
        opened.append(RawClient(bucket.port))
        return opened[-1].log_in((0x06, 0x07, 0x08, 0x0B, *features))

    yield connected
    for client in opened:
        client.close()


@pytest.fixture
def writer(connect) -> Writer:
    return Writer(connect(Feature.COLLECTIONS).call)


def key(collection: int, name: bytes = b"k") -> bytes:
    return pack_leb128(collection) + name


def streamed(client: RawClient, until: int) -> list[tuple[int, int, bytes]]:
    """Opcode, seqno and key of what comes up to a seqno; markers are left out."""
    found: list[tuple[int, int, bytes]] = []
    while not found or found[-1][1] < until:
        frame = client.read()
        assert frame is not None
        if frame.opcode != Op.DCP_SNAPSHOT_MARKER:
            found.append((frame.opcode, struct.unpack_from(">Q", frame.extras)[0], frame.key))
    return found


def open_stream(client: RawClient, value: object = None, start: int = 0) -> Frame:
    extras = struct.pack(">IIQQQQQ", 0, 0, start, 2**64 - 1, 0, start, start)
    body = b"" if value is None else json.dumps(value).encode()
    return client.call(Op.DCP_STREAM_REQ, vbucket=0, extras=extras, value=body)


def test_manifest_and_numbers(connect):
    client = connect(Feature.COLLECTIONS)
    manifest = json.loads(client.call(Op.COLLECTIONS_GET_MANIFEST).value)
    assert manifest == {
        "uid": "2",
        "scopes": [
            {"name": "_default", "uid": "0", "collections": [{"name": "_default", "uid": "0"}]},
            {
                "name": "shop",
                "uid": "8",
                "collections": [{"name": "orders", "uid": "9"}, {"name": "returns", "uid": "a"}],
            },
        ],
    }
    assert client.call(Op.COLLECTIONS_GET_ID, value=b"shop.returns").extras == struct.pack(">QI", 2, RETURNS)
    unknown = client.call(Op.COLLECTIONS_GET_ID, value=b"shop.none")
    assert (unknown.status, unknown.value) == (Status.UNKNOWN_COLLECTION, b'{"manifest_uid":"2"}')


def test_same_key_is_another_document_in_each_collection(connect, writer):
    writer.set(0, key(0), b"0")
    writer.set(0, key(ORDERS), b"9")
    assert writer.get(0, key(ORDERS)).value == b"9"
    assert writer.get(0, key(RETURNS)).status == Status.KEY_ENOENT
    assert Writer(connect().call).get(0, b"k").value == b"0"
    assert writer.set(0, key(77), b"").status == Status.UNKNOWN_COLLECTION
    assert writer.set(0, key(1), b"").status == Status.UNKNOWN_COLLECTION


def test_stream_without_a_filter_has_everything_and_the_events(connect, writer):
    writer.set(0, key(0), b"0")
    writer.set(0, key(ORDERS), b"9")
    feed = connect(Feature.COLLECTIONS).open_dcp()
    open_stream(feed)
    assert streamed(feed, until=5) == [
        (Op.DCP_SYSTEM_EVENT, 1, b"shop"),
        (Op.DCP_SYSTEM_EVENT, 2, b"orders"),
        (Op.DCP_SYSTEM_EVENT, 3, b"returns"),
        (Op.DCP_MUTATION, 4, key(0)),
        (Op.DCP_MUTATION, 5, key(ORDERS)),
    ]


def test_event_says_which_collection_begins(connect):
    feed = connect(Feature.COLLECTIONS).open_dcp()
    open_stream(feed, {"collections": ["a"]})
    assert feed.read() is not None
    event = feed.read()
    assert event is not None
    assert struct.unpack(">QIB", event.extras) == (3, 0, 0)
    assert (event.key, struct.unpack(">QII", event.value)) == (b"returns", (2, SHOP, RETURNS))


def test_filtered_stream_learns_of_seqnos_that_it_does_not_get(connect, writer):
    feed = connect(Feature.COLLECTIONS).open_dcp()
    open_stream(feed, {"collections": ["9"]})
    assert streamed(feed, until=3) == [(Op.DCP_SYSTEM_EVENT, 2, b"orders"), (Op.DCP_SEQNO_ADVANCED, 3, b"")]
    writer.set(0, key(0), b"0")
    assert streamed(feed, until=4) == [(Op.DCP_SEQNO_ADVANCED, 4, b"")]
    writer.set(0, key(ORDERS), b"9")
    assert streamed(feed, until=5) == [(Op.DCP_MUTATION, 5, key(ORDERS))]


def test_stream_of_a_scope_has_its_later_collections_too(bucket, connect, writer):
    feed = connect(Feature.COLLECTIONS).open_dcp()
    open_stream(feed, {"scope": "8"}, start=0)
    streamed(feed, until=3)
    bucket.create_collection("shop.new")
    bucket.create_collection("other.one")
    writer.set(0, key(RETURNS + 1), b"")
    assert [found for found in streamed(feed, until=7) if found[0] != Op.DCP_SEQNO_ADVANCED] == [
        (Op.DCP_SYSTEM_EVENT, 4, b"new"),
        (Op.DCP_MUTATION, 7, key(RETURNS + 1)),
    ]


def test_client_that_knows_no_collections_gets_the_default_one_with_bare_keys(connect, writer):
    feed = connect().open_dcp()
    open_stream(feed)
    writer.set(0, key(ORDERS), b"9")
    writer.set(0, key(0, b"mine"), b"0")
    assert streamed(feed, until=5) == [(Op.DCP_MUTATION, 5, b"mine")]
    writer.delete(0, key(0, b"mine"))
    assert streamed(feed, until=6) == [(Op.DCP_DELETION, 6, b"mine")]


@pytest.mark.parametrize(
    ("value", "status"),
    [
        ({"collections": ["77"]}, Status.UNKNOWN_COLLECTION),
        ({"scope": "77"}, Status.UNKNOWN_SCOPE),
        ({"collections": ["9"], "scope": "8"}, Status.EINVAL),
        ({"collections": "9"}, Status.EINVAL),
        ({"collections": [9]}, Status.EINVAL),
        ([], Status.EINVAL),
        ({"uid": "2"}, Status.SUCCESS),
    ],
)
def test_filters_that_make_no_sense_are_refused(connect, value, status):
    assert open_stream(connect(Feature.COLLECTIONS).open_dcp(), value).status == status


def test_seqnos_of_one_collection(connect, writer):
    client = connect(Feature.COLLECTIONS)
    writer.set(0, key(ORDERS), b"9")
    writer.set(0, key(0), b"0")
    asked = client.call(Op.GET_ALL_VB_SEQNOS, extras=struct.pack(">II", 1, ORDERS))
    assert list(struct.iter_unpack(">HQ", asked.value)) == [(0, 4), (1, 0)]


def test_collections_are_kept_in_the_file(tmp_path):
    path = tmp_path / "bucket.db"
    with DevBucket(config(path)) as bucket:
        bucket.create_collection("shop.new")
        client = RawClient(bucket.port).log_in((0x06, 0x0B, 0x12))
        Writer(client.call).set(0, key(RETURNS + 1), b"1")
        client.close()
    with DevBucket(config(path)) as bucket:
        client = RawClient(bucket.port).log_in((0x06, 0x0B, 0x12))
        assert Writer(client.call).get(0, key(RETURNS + 1)).value == b"1"
        assert client.call(Op.COLLECTIONS_GET_ID, value=b"shop.new").extras == struct.pack(">QI", 3, RETURNS + 1)
        assert bucket.high_seqnos() == [5, 4]
        client.close()
    with (
        pytest.raises(ConfigInvalid, match="with the collections"),
        DevBucket(DevBucketConfig(n_vbuckets=2, file=path)),
    ):
        pass


def test_official_sdk_finds_collections(bucket):
    cluster = Cluster(bucket.cluster_url, ClusterOptions(PasswordAuthenticator(bucket.user, bucket.password)))
    default = cluster.bucket("default").default_collection()
    orders = cluster.bucket("default").scope("shop").collection("orders")
    orders.upsert("k", {"n": 9})
    default.upsert("k", {"n": 0})
    assert (orders.get("k").value, default.get("k").value) == ({"n": 9}, {"n": 0})
    orders.remove("k")
    with pytest.raises(DocumentNotFoundException):
        orders.get("k")
    cluster.close()


def test_bucket_without_collections_has_no_such_commands():
    with DevBucket(DevBucketConfig(n_vbuckets=1)) as bucket:
        client = RawClient(bucket.port).log_in((0x06, 0x0B, 0x12))
        assert client.call(Op.COLLECTIONS_GET_MANIFEST).status == Status.NOT_SUPPORTED
        with pytest.raises(ConfigInvalid, match="made without collections"):
            bucket.create_collection("a.b")
        client.close()


@pytest.mark.parametrize("path", ["", "a", ".a", "a.", "a.b.c"])
def test_names_of_collections(path):
    with pytest.raises(ConfigInvalid, match=r"is not scope\.collection"):
        CollectionManifest().create(path)


def test_collection_is_created_once():
    manifest = CollectionManifest()
    manifest.create("_default.a")
    with pytest.raises(ConfigInvalid, match="there already"):
        manifest.create("_default.a")


def test_key_without_a_number_is_malformed():
    with pytest.raises(Malformed):
        split_key(b"\xff\xff")
    with pytest.raises(Refused):
        CollectionManifest().filter_of(b"[]")


@pytest.mark.parametrize(
    ("collections", "keys"),
    [
        ((), {b"in-default"}),
        (("shop.orders",), {b"in-orders"}),
        (("shop.*",), {b"shop.orders/in-orders", b"shop.returns/in-returns"}),
    ],
)
def test_our_feed_brings_what_it_asks_for_and_the_clock_of_all(bucket, collections, keys):
    address = parse_source_url(bucket.url)
    for path in ("_default._default", "shop.orders", "shop.returns"):
        with KvClient(replace(address, collections=(path,)), ADMIN) as kv:
            kv.store(b"in-" + path.rpartition(".")[2].strip("_").encode(), b"{}")
    with Reading(bucket, address=replace(address, collections=collections)) as reading:
        reading.until_caught_up(bucket)
        assert {found for _, _, found in reading.documents()} == keys
