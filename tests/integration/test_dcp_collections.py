"""Collections of a bucket that has them: what is streamed, under which keys, and how far the clock gets."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from channelindex.errors import ConfigInvalid, SourceUnavailable
from channelindex.feeds.base import ADVANCED
from channelindex.feeds.dcp.connstr import SourceAddress, parse_source_url
from channelindex.feeds.dcp.kv import KvClient
from devbucket import DevBucket, DevBucketConfig
from tests.support.dcp_reading import ADMIN, Reading

N_VBUCKETS = 4
KEYS = [b"doc%d" % i for i in range(40)]


@pytest.fixture
def bucket() -> Iterator[DevBucket]:
    config = DevBucketConfig(n_vbuckets=N_VBUCKETS, collections=("shop.orders", "shop.carts", "other.things"))
    with DevBucket(config) as started:
        for name in ("", "shop.orders", "shop.carts", "other.things"):
            with KvClient(address(started, *filter(None, [name])), ADMIN) as kv:
                for key in KEYS:
                    kv.store(key, b'"%s"' % name.encode())
        yield started


def address(bucket: DevBucket, *collections: str) -> SourceAddress:
    return replace(parse_source_url(bucket.url), collections=collections)


def brought(reading: Reading) -> set[tuple[bytes, bytes]]:
    return {(event[3], event[5]) for event in reading.events if event[0] == 0}


@pytest.mark.parametrize("name", ["", "shop.orders", "other.things"])
def test_one_collection_comes_with_plain_keys_and_all_seqnos(name: str, bucket: DevBucket) -> None:
    with Reading(bucket, address=address(bucket, *filter(None, [name]))) as reading:
        reading.until_caught_up(bucket)  # also where the last seqnos are of another collection
        assert brought(reading) == {(key, b'"%s"' % name.encode()) for key in KEYS}
        assert name == "other.things" or any(event[0] == ADVANCED for event in reading.events)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("shop.orders", "other.things"), {"shop.orders", "other.things"}),
        (("shop.*",), {"shop.orders", "shop.carts"}),
    ],
)
def test_several_collections_come_with_their_names(
    names: tuple[str, ...], expected: set[str], bucket: DevBucket
) -> None:
    with Reading(bucket, address=address(bucket, *names)) as reading:
        reading.until(lambda: len(brought(reading)) == len(expected) * len(KEYS))
        assert brought(reading) == {
            (f"{name}/".encode() + key, b'"%s"' % name.encode()) for name in expected for key in KEYS
        }


def test_a_client_of_one_collection_sees_its_documents_alone(bucket: DevBucket) -> None:
    with KvClient(address(bucket, "shop.carts"), ADMIN) as kv:
        kv.delete(KEYS[0])
        assert kv.get(KEYS[0]) is None
        assert sum(kv.high_seqnos().values()) > 0
    with KvClient(address(bucket, "shop.orders"), ADMIN) as kv:
        found = kv.get(KEYS[0])
        assert found is not None
        assert found.body == b'"shop.orders"'


def test_documents_are_not_written_to_several_collections(bucket: DevBucket) -> None:
    with KvClient(address(bucket, "shop.*"), ADMIN) as kv, pytest.raises(ConfigInvalid, match=r"source\.collections"):
        kv.get(b"k")


def test_a_collection_that_is_not_there_is_reported(bucket: DevBucket) -> None:
    with pytest.raises(SourceUnavailable, match=r"no collection 'shop\.nosuch'"):
        KvClient(address(bucket, "shop.nosuch"), ADMIN)
