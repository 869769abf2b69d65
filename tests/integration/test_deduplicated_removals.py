"""Nodes are down while documents move between channels, and the bucket keeps only their newest version.

Whoever follows a channel must learn of every document that left it, though nobody was ever brought the revision that
took it out. What must be in the index is what the documents in the bucket say.
"""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

import pytest

from channelindex.feeds.dcp.exchange import Request
from channelindex.feeds.dcp.kv import KvClient
from channelindex.reading.changes_reader import ChangesReader
from channelindex.stores import open_reader
from devbucket import vbucket
from devbucket.bucket_config import DevBucketConfig
from devbucket.process import DevBucket
from devbucket.sync_gateway.layouts import InlineLayout, Layout, StoredDocument, XattrLayout
from devbucket.sync_gateway.loader import SEQUENCE_BATCH, Loader
from devbucket.sync_gateway.metadata import MAX_RECENT_SEQUENCES, current_rev
from devbucket.sync_gateway.revisions import Revision, generation
from tests.support.history import Membership
from tests.support.node import Node, until
from tests.support.running import assert_verified, await_stable, connect, indexed_channels
from tests.support.stores import settings_of

N_VBUCKETS = 4
"""So few that documents meet others in their vbucket, whose sequences the feed has been brought meanwhile."""
MISSED = (1, MAX_RECENT_SEQUENCES - 1, MAX_RECENT_SEQUENCES + 1, 500)
"""Revisions that a document gets while nobody looks. Sync Gateway lists the last 20 sequences of each document."""
CHANNELS = tuple(f"ch-{number}" for number in range(12))
SETTINGS = {"coordination__ttl_s": 1.0, "index__partitions": 4}


class AcceleratorLayout(InlineLayout):
    """As Sync Gateway wrote where an accelerator gave out the order: without any sequence."""

    def write(self, revision: Revision, sync: Mapping[str, Any], stored: StoredDocument) -> Request:
        channels = {
            name: removal and {key: value for key, value in removal.items() if key != "seq"}
            for name, removal in (sync.get("channels") or {}).items()
        }
        kept = {key: value for key, value in sync.items() if key not in {"sequence", "recent_sequences"}}
        return super().write(revision, {**kept, "channels": channels}, stored)


class Documents:
    """Documents that move at random; `ids` has three of each kind that MISSED tells apart."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._generations: dict[str, int] = {}
        self.missed_by_id = {f"doc-{missed}-{copy}": missed for missed in MISSED for copy in range(3)}

    def revise(self, id_: str) -> Revision:
        number = self._generations[id_] = self._generations.get(id_, 0) + 1
        deleted = number > 1 and self._chance.random() < 0.1
        channels = () if deleted else tuple(self._chance.sample(CHANNELS, self._chance.randint(0, 3)))
        return Revision(id_, f"{number}-{self._chance.getrandbits(128):032x}", channels, deleted=deleted)

    def revise_all(self, times: int) -> Iterator[Revision]:
        for _ in range(times):
            yield from map(self.revise, self.missed_by_id)

    def revise_as_missed(self) -> Iterator[Revision]:
        """Each as often as its name says, the documents among each other."""
        for turn in range(max(MISSED)):
            yield from (self.revise(id_) for id_, missed in self.missed_by_id.items() if turn < missed)

    def learn(self, stored: Mapping[str, StoredDocument]) -> None:
        """Go on from what is in the bucket."""
        self._generations = {id_: generation(current_rev(document.sync)) for id_, document in stored.items()}


class Reader:
    """Follows every channel by its own token, a few documents a page."""

    def __init__(self, store_url: str) -> None:
        self._store_url = store_url
        self._since: dict[str, str] = {}
        self.seen: dict[str, dict[str, tuple[str, bool, bool]]] = {channel: {} for channel in (*CHANNELS, "*")}

    def catch_up(self) -> None:
        with closing(open_reader(settings_of(self._store_url, "channels"))) as store:
            reader = ChangesReader(store)
            for channel, seen in self.seen.items():
                for page in reader.pages([channel], self._since.get(channel), limit=3):
                    seen.update({entry.id: (entry.rev, entry.removed, entry.deleted) for entry in page.entries})
                    self._since[channel] = page.since

    def membership(self) -> Membership:
        return {channel: {(id_, *what) for id_, what in seen.items()} for channel, seen in self.seen.items() if seen}


def stored_documents(client: KvClient, layout: Layout, ids: Sequence[str]) -> dict[str, StoredDocument]:
    answers = client.pipeline([layout.read(id_.encode()) for id_ in ids])
    return {id_: layout.found(answer) for id_, answer in zip(ids, answers, strict=True)}


def membership_of(documents: Mapping[str, StoredDocument]) -> Membership:
    """What the documents in the bucket say of their channels."""
    said: Membership = {}
    for id_, document in documents.items():
        assert document.sync is not None
        rev = current_rev(document.sync)
        deleted = bool(document.sync.get("flags", 0) & 1)
        said.setdefault("*", set()).add((id_, rev, False, deleted))
        for channel, removal in (document.sync.get("channels") or {}).items():
            entry = (
                (id_, rev, False, deleted) if removal is None else (id_, removal["rev"], True, bool(removal.get("del")))
            )
            said.setdefault(channel, set()).add(entry)
    return said


class Scene:
    """A bucket with documents that were all indexed, and a reader that has read them."""

    def __init__(self, store_url: str, bucket: DevBucket, client: KvClient, layout: Layout, seed: int = 1) -> None:
        self.documents = Documents(seed)
        self.loader = Loader(client, layout)
        self.reader = Reader(store_url)
        self._store_url, self._bucket, self._client, self._layout = store_url, bucket, client, layout

    def begin(self) -> None:
        """Some revisions of every document, in several snapshots, while a node works."""
        for _ in range(3):
            self.loader.load(self.documents.revise_all(times=20))
            await_stable(self._store_url, self._bucket)
        self.reader.catch_up()

    def stored(self) -> dict[str, StoredDocument]:
        return stored_documents(self._client, self._layout, tuple(self.documents.missed_by_id))

    def assert_exact(self, node: Node) -> None:
        await_stable(self._store_url, self._bucket)
        expected = membership_of(self.stored())
        self.reader.catch_up()
        assert self.reader.membership() == expected
        assert indexed_channels(self._store_url) == expected
        assert_verified(node.config)


@pytest.mark.parametrize(
    "layout", [InlineLayout(), XattrLayout(), AcceleratorLayout()], ids=["inline", "xattr", "accelerator"]
)
def test_documents_that_moved_while_the_node_was_down_have_left_every_channel(tmp_path, redis_url, layout):
    with (
        DevBucket(DevBucketConfig(n_vbuckets=N_VBUCKETS)) as bucket,
        connect(bucket) as client,
        Node("n1", tmp_path, redis_url, bucket, **SETTINGS).start() as node,
    ):
        scene = Scene(redis_url, bucket, client, layout)
        scene.begin()
        for _ in range(2):
            assert node.drain() == 0
            scene.loader.load(scene.documents.revise_as_missed())
            node.start()
            scene.assert_exact(node)


@pytest.mark.parametrize("layout", [InlineLayout(), XattrLayout()], ids=["inline", "xattr"])
def test_documents_that_moved_before_a_failover_took_some_of_it_back(tmp_path, redis_url, layout, monkeypatch):
    monkeypatch.setattr(vbucket, "MAX_LOSS", 1000)  # as much as is missed here
    with (
        DevBucket(DevBucketConfig(n_vbuckets=N_VBUCKETS)) as bucket,
        connect(bucket) as client,
        Node("n1", tmp_path, redis_url, bucket, **SETTINGS).start() as node,
    ):
        scene = Scene(redis_url, bucket, client, layout)
        scene.begin()
        node.kill()
        highs = bucket.high_seqnos()
        scene.loader.load(scene.documents.revise_as_missed())
        for vb, (before, now) in enumerate(zip(highs, bucket.high_seqnos(), strict=True)):
            bucket.failover(vb, lose=(now - before) // 2)  # nothing of it was indexed
        scene.documents.learn(scene.stored())
        scene.loader = Loader(client, layout)
        scene.loader.load(scene.documents.revise_all(times=MAX_RECENT_SEQUENCES + 1))
        node.start()
        scene.assert_exact(node)


def test_documents_that_moved_while_two_nodes_were_down_and_one_came_back(tmp_path, redis_url):
    with (
        DevBucket(DevBucketConfig(n_vbuckets=N_VBUCKETS)) as bucket,
        connect(bucket) as client,
        Node("a", tmp_path, redis_url, bucket, **SETTINGS).start() as a,
        Node("b", tmp_path, redis_url, bucket, **SETTINGS).start() as b,
    ):
        scene = Scene(redis_url, bucket, client, XattrLayout())
        scene.begin()
        until(lambda: all("feed.started" in node.log.read_text() for node in (a, b)), "both nodes to work")
        a.kill()
        b.kill()
        scene.loader.load(scene.documents.revise_as_missed())
        b.start()
        scene.assert_exact(b)


def test_removals_of_a_writer_that_others_have_overtaken_are_indexed(tmp_path, redis_url):
    with (
        DevBucket(DevBucketConfig(n_vbuckets=1)) as bucket,
        connect(bucket) as client,
        Node("n1", tmp_path, redis_url, bucket, **{**SETTINGS, "index__partitions": 1}).start() as node,
    ):
        scene = Scene(redis_url, bucket, client, InlineLayout())
        scene.begin()
        slow = Loader(client, InlineLayout())
        slow.load([Revision("slow", f"1-{'0' * 32}", ("ch-0",))])  # has taken sequences, and uses one of them
        await_stable(redis_url, bucket)
        scene.reader.catch_up()
        scene.loader.load(scene.documents.revise_all(times=SEQUENCE_BATCH // len(scene.documents.missed_by_id)))
        await_stable(redis_url, bucket)  # the feed has been brought sequences above those
        assert node.drain() == 0
        slow.load([Revision("slow", f"{number}-{'0' * 32}", (f"ch-{number}",)) for number in range(2, 5)])
        node.start()
        await_stable(redis_url, bucket)
        scene.reader.catch_up()
        seen = {channel: members["slow"] for channel, members in scene.reader.seen.items() if "slow" in members}
        assert {channel for channel, (_, removed, _) in seen.items() if not removed} == {"ch-4", "*"}
        assert {channel for channel, (_, removed, _) in seen.items() if removed} == {"ch-0", "ch-2", "ch-3"}
        assert_verified(node.config)


def document(sequence: int, rev: str, **channels: dict[str, object] | None) -> bytes:
    return json.dumps({"_sync": {"rev": rev, "sequence": sequence, "channels": channels}}).encode()


def test_a_removal_that_a_resync_wrote_under_an_old_sequence_is_indexed(tmp_path, redis_url):
    """A resync rewrites `channels` under the sequence of a document; then comes an update, and the node sees one."""
    with (
        DevBucket(DevBucketConfig(n_vbuckets=1)) as bucket,
        connect(bucket) as client,
        Node("n1", tmp_path, redis_url, bucket, **{**SETTINGS, "index__partitions": 1}).start() as node,
    ):
        client.store(b"doc", document(10, "1-a", A=None, B=None))
        for sequence in (11, 60_000, 60_001):  # the feed has been brought far higher ones
            client.store(b"other", document(sequence, f"{sequence}-b", A=None))
            await_stable(redis_url, bucket)
        assert node.drain() == 0
        resynced = {"A": None, "B": {"seq": 10, "rev": "1-a"}}
        client.store(b"doc", document(10, "1-a", **resynced))
        client.store(b"doc", document(60_002, "2-b", **resynced))
        node.start()
        await_stable(redis_url, bucket)
        assert ("doc", "1-a", True, False) in indexed_channels(redis_url)["B"]
        assert ("doc", "2-b", False, False) in indexed_channels(redis_url)["A"]
        assert_verified(node.config)
