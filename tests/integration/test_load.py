"""The loader against a dev bucket over the real protocol, with the metadata inline and as an extended attribute."""

import json
import random
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import pytest

from channelindex.decode.sync_gateway import SyncGatewayDecoder
from channelindex.errors import SourceUnavailable
from channelindex.feeds.base import JSON, MUTATION, XATTR
from channelindex.feeds.dcp.auth import Credentials
from channelindex.feeds.dcp.connstr import parse_source_url
from channelindex.feeds.dcp.exchange import Request
from channelindex.feeds.dcp.kv import KvClient
from channelindex.mcbp import Frame, join_xattrs
from channelindex.model import DELETED, Route
from devbucket import DevBucket, DevBucketConfig
from devbucket.sync_gateway.layouts import InlineLayout, Layout, XattrLayout
from devbucket.sync_gateway.loader import Loader
from devbucket.sync_gateway.resync import resync
from devbucket.sync_gateway.revisions import Revision, read_revisions
from devbucket.sync_gateway.synthetic import synthetic_revisions
from tests.support.shared import shared_path

LAYOUTS = [InlineLayout(), XattrLayout()]


@pytest.fixture
def bucket() -> Iterator[DevBucket]:
    with DevBucket(DevBucketConfig(n_vbuckets=16)) as running:
        yield running


def connect(bucket: DevBucket) -> KvClient:
    return KvClient(parse_source_url(bucket.url), Credentials(bucket.user, bucket.password))


@pytest.fixture
def kv(bucket: DevBucket) -> Iterator[KvClient]:
    with connect(bucket) as client:
        yield client


def route_of(kv: KvClient, id_: str) -> Route:
    """What the decoder makes of a document as the bucket has it."""
    document = kv.lookup(id_.encode(), "_sync")
    assert document is not None
    if document.xattr is None:
        datatype, value = JSON, document.body
    else:
        datatype, value = XATTR, join_xattrs([("_sync", document.xattr)], b"")
    route = SyncGatewayDecoder().decode(MUTATION, id_.encode(), datatype, value or b"")
    assert isinstance(route, Route)
    return route


def channels_in(route: Route) -> set[str]:
    return {channel for channel, removal in route.channels.items() if removal is None} - {"*"}


def check(kv: KvClient, revisions: list[Revision]) -> None:
    """Every document is at its newest revision, in that one's channels, and out of all others it ever was in."""
    newest = {revision.id: revision for revision in revisions}
    ever: dict[str, set[str]] = {}
    for revision in revisions:
        ever.setdefault(revision.id, set()).update(() if revision.deleted else revision.channels)
    for id_, revision in newest.items():
        route = route_of(kv, id_)
        assert route.rev == revision.rev
        assert bool(route.flags & DELETED) is revision.deleted
        assert channels_in(route) == (set() if revision.deleted else set(revision.channels))
        assert set(route.channels) - {"*"} == ever[id_]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_real_history(kv: KvClient, layout: Layout):
    revisions = list(islice(read_revisions(shared_path("data/repo-history.jsonl.gz")), 600))
    assert Loader(kv, layout).load(revisions) == 600
    check(kv, revisions)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_documents_that_vanish_and_come_back(kv: KvClient, layout: Layout):
    """Few documents with many lives, and loaders that know nothing of each other's."""
    revisions = list(islice(synthetic_revisions(11, n_documents=12, n_channels=6), 600))
    for start in range(0, 600, 150):
        assert Loader(kv, layout).load(revisions[: start + 150]) == 150
    check(kv, revisions)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_loaders_at_the_same_documents_lose_nothing(bucket: DevBucket, kv: KvClient, layout: Layout):
    revisions = list(islice(synthetic_revisions(5, n_documents=8, n_channels=4), 400))
    with connect(bucket) as second:
        loaders = [Loader(kv, layout), Loader(second, layout)]
        rnd = random.Random(5)
        for revision in revisions:
            assert rnd.choice(loaders).load([revision]) == 1
    check(kv, revisions)


def revision(generation: int, *channels: str, deleted: bool = False) -> Revision:
    return Revision(id="doc", rev=f"{generation}-x", channels=channels, body={"n": generation}, deleted=deleted)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_deletion_of_a_document_that_never_was_and_of_one_that_is_gone(kv: KvClient, layout: Layout):
    steps = [revision(1, deleted=True), revision(2, deleted=True), revision(3, "A"), revision(4, deleted=True)]
    for step in [*steps, revision(5, deleted=True), revision(6, "B")]:
        assert Loader(kv, layout).load([step]) == 1
        route = route_of(kv, "doc")
        assert (route.rev, bool(route.flags & DELETED)) == (step.rev, step.deleted)
    removal = route.channels["A"]
    assert removal is not None
    assert (removal.rev, removal.deleted) == ("4-x", True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_resync_moves_a_document_under_the_sequence_it_has(kv: KvClient, layout: Layout):
    loader = Loader(kv, layout)
    loader.load([revision(1, "A", "B")])
    before, stored = route_of(kv, "doc"), kv.lookup(b"doc", "_mou")
    assert stored is not None
    assert resync(kv, layout, {"doc": ("C", "B"), "never": ("A",)}) == 1
    assert resync(kv, layout, {"doc": ("B", "C")}) == 0, "it is in these channels now"
    after, noted = route_of(kv, "doc"), kv.lookup(b"doc", "_mou")
    assert noted is not None
    assert (after.rev, after.sequence) == (before.rev, before.sequence)
    assert channels_in(after) == {"B", "C"}
    removal = after.channels["A"]
    assert removal is not None
    assert (removal.sequence, removal.rev) == (before.sequence, before.rev)
    if isinstance(layout, XattrLayout):
        assert noted.body == stored.body
        assert noted.xattr is not None
        assert json.loads(noted.xattr)["pCas"] == f"0x{stored.cas.to_bytes(8, 'little').hex()}"
    assert loader.load([revision(2, "D")]) == 1, "a loader that knows the version before reads it again"
    assert channels_in(route_of(kv, "doc")) == {"D"}


def test_resync_leaves_tombstones_alone(kv: KvClient):
    Loader(kv, XattrLayout()).load([revision(1, "A"), revision(2, deleted=True)])
    assert resync(kv, XattrLayout(), {"doc": ["B"]}) == 0


def test_resync_gives_up_on_a_document_that_others_keep_writing(kv: KvClient):
    Loader(kv, InlineLayout()).load([revision(1, "A")])

    class Outpaced(InlineLayout):
        def rewrite(self, key: bytes, sync: Mapping[str, Any], answer: Frame) -> list[Request]:
            kv.store(key, answer.value)
            return super().rewrite(key, sync, answer)

    with pytest.raises(SourceUnavailable, match="others keep writing it"):
        resync(kv, Outpaced(), {"doc": ["B"]})
    assert channels_in(route_of(kv, "doc")) == {"A"}


def test_deleted_document_is_a_tombstone_with_its_metadata(kv: KvClient):
    Loader(kv, XattrLayout()).load([revision(1, "A"), revision(2, deleted=True)])
    assert kv.get(b"doc") is None
    document = kv.lookup(b"doc", "_sync")
    assert document is not None
    assert document.body is None
    assert document.xattr is not None
    assert json.loads(document.xattr)["flags"] == DELETED


def test_server_fills_in_cas_and_checksum(kv: KvClient):
    """By these Sync Gateway tells its own writes from others'; the CAS is written byte-swapped."""
    Loader(kv, XattrLayout()).load([revision(1, "A")])
    document = kv.lookup(b"doc", "_sync")
    assert document is not None
    assert document.xattr is not None
    assert document.body == b'{"n":1}'
    sync: dict[str, Any] = json.loads(document.xattr)
    assert sync["cas"] == f"0x{document.cas.to_bytes(8, 'little').hex()}"
    assert sync["value_crc32c"].startswith("0x")


def test_inline_document_holds_body_and_metadata(kv: KvClient):
    Loader(kv, InlineLayout()).load([revision(1, "A"), revision(2, deleted=True)])
    document = kv.get(b"doc")
    assert document is not None
    assert document.body is not None
    content = json.loads(document.body)
    assert content.keys() == {"n", "_deleted", "_sync"}


def test_users_and_roles(kv: KvClient):
    loader = Loader(kv, XattrLayout())
    loader.put_role("editor", ["news"])
    loader.put_user("alice", ["A"], roles=["editor"])
    for key, name in ((b"_sync:role:editor", "editor"), (b"_sync:user:alice", "alice")):
        document = kv.get(key)
        assert document is not None
        assert json.loads(document.body or b"")["name"] == name
