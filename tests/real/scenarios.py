"""What is tried against a bucket that somebody has. Each scenario writes documents of its own and asks for their index.

A scenario returns what it has to say of its success; it raises `NotRun` where a right or a feature is missing, and an
AssertionError where the index is not what was written.
"""

import itertools
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from channelindex.errors import AuthenticationFailed
from channelindex.feeds.dcp.exchange import Request
from channelindex.feeds.dcp.kv import KvClient
from channelindex.mcbp import Status
from devbucket.embedded_redis import EmbeddedRedis
from devbucket.kv_commands import EVICT_KEY
from devbucket.sync_gateway.layouts import InlineLayout, Layout, XattrLayout
from devbucket.sync_gateway.resync import resync
from devbucket.sync_gateway.revisions import Revision
from tests.real.target import NotRun, Target, TargetLoader
from tests.support.history import Membership
from tests.support.node import Node, stable_seqnos, until
from tests.support.one_pass import index_once
from tests.support.running import indexed_channels

N_DOCUMENTS = 60
BODY = {"text": "lorem ipsum " * 20}
MOST_PARTITIONS = 16
LARGE_BYTES = 1_000_000
EXPIRES_WITHIN_S = 1
EXPIRY_DEADLINE_S = 60.0
_MOST_SHOWN = 3

Run = Callable[[Target], str]


@dataclass(frozen=True)
class Scenario:
    """What it shows, in a few words, and how it is tried."""

    title: str
    run: Run


SCENARIOS: list[Scenario] = []


def scenario(title: str) -> Callable[[Run], Run]:
    """Register a scenario; they run in the order in which they stand here."""

    def register(run: Run) -> Run:
        SCENARIOS.append(Scenario(title, run))
        return run

    return register


def revisions_of(target: Target, name: str, n: int = N_DOCUMENTS) -> Iterator[Revision]:
    """Some revisions of *n* documents; every fourth one moves, every third one is deleted at last."""
    for number in range(n):
        id_ = f"{target.prefix}{name}-{number}"
        yield Revision(id=id_, rev="1-a", channels=(f"{target.prefix}a", f"{target.prefix}{number % 5}"), body=BODY)
        if number % 4 == 1:
            yield Revision(id=id_, rev="2-b", channels=(f"{target.prefix}a", f"{target.prefix}moved"), body=BODY)
        if number % 3 == 2:
            yield Revision(id=id_, rev="3-c", channels=(), deleted=True)


def check(found: Membership, expected: Membership) -> None:
    """Fail, naming some entries, unless the index holds what was written and nothing else."""
    have = {(channel, *row) for channel, rows in found.items() for row in rows}
    want = {(channel, *row) for channel, rows in expected.items() for row in rows}
    missing, extra = sorted(want - have), sorted(have - want)
    assert not missing, f"{len(missing)} of {len(want)} entries are missing, such as {missing[:_MOST_SHOWN]}"
    assert not extra, f"{len(extra)} entries are untrue, such as {extra[:_MOST_SHOWN]}"


def read(target: Target, **settings: object) -> Membership:
    """All channels of the bucket, under some settings of a feed.

    Raises:
        NotRun: we may not stream.
    """
    try:
        return index_once(target.source(**settings))
    except AuthenticationFailed as error:
        raise NotRun(f"{target.user or 'this client'} may not stream: {error}") from error


def read_in_every_way(target: Target, loader: TargetLoader, gone: tuple[str, ...] = ()) -> str:
    """Compare the index with what was written, under every setting that sees these documents."""
    ways = ("auto", "inline") if isinstance(loader.layout, InlineLayout) else ("auto", "xattr", "inline")
    expected = target.ours(loader.expected(without=gone))
    for metadata, compression in itertools.product(ways, (True, False)):
        found = read(target, metadata=metadata, compression=compression)
        try:
            check(target.ours(found), expected)
        except AssertionError as error:
            raise AssertionError(f"source.metadata={metadata}, source.compression={compression}: {error}") from error
    return f"{sum(map(len, expected.values()))} entries, with {2 * len(ways)} settings"


@scenario("inline metadata: documents that live, moved, were deleted")
def inline_metadata(target: Target) -> str:
    with target.loading(InlineLayout()) as loader:
        loader.load(revisions_of(target, "inline"))
        return read_in_every_way(target, loader)


@scenario("metadata in xattrs: documents that live, moved, tombstones")
def metadata_in_xattrs(target: Target) -> str:
    with target.loading(XattrLayout()) as loader:
        loader.load(revisions_of(target, "xattr"))
        return read_in_every_way(target, loader)


@scenario("documents whose values left memory, inline metadata")
def evicted_inline(target: Target) -> str:
    return _evicted(target, InlineLayout(), "evicted-inline")


@scenario("documents whose values left memory, xattrs")
def evicted_xattr(target: Target) -> str:
    return _evicted(target, XattrLayout(), "evicted-xattr")


def _evicted(target: Target, layout: Layout, name: str) -> str:
    with target.loading(layout) as loader:
        loader.load(revisions_of(target, name))
        ids = sorted({each.id for each in revisions_of(target, name)})
        n_evicted = _evict(loader.client, ids)
        return f"{read_in_every_way(target, loader)}; {n_evicted} of {len(ids)} values evicted"


def _evict(client: KvClient, ids: list[str]) -> int:
    """Have values leave memory; how many did. Those that are not on disk yet, and tombstones, do not."""
    statuses: dict[str, int] = {}

    def all_tried() -> bool:
        left = [id_ for id_ in ids if statuses.get(id_) not in (Status.SUCCESS, Status.KEY_ENOENT)]
        for id_, answer in zip(left, client.pipeline([Request(EVICT_KEY, id_.encode()) for id_ in left]), strict=True):
            if answer.status in (Status.UNKNOWN_COMMAND, Status.NOT_SUPPORTED, Status.EACCESS):
                raise NotRun(f"EVICT_KEY is refused with status 0x{answer.status:02x}: it needs an administrator")
            statuses[id_] = answer.status
        return not left

    until(all_tried, "the values to be on disk, so that they can be evicted")
    return sum(status == Status.SUCCESS for status in statuses.values())


@scenario("documents that expired, xattrs")
def expired(target: Target) -> str:
    with target.loading(XattrLayout()) as loader:
        revisions = [each for each in revisions_of(target, "expires", 9) if not each.deleted]
        loader.load(revisions)
        loader.expire(sorted({each.id for each in revisions}), EXPIRES_WITHIN_S, EXPIRY_DEADLINE_S)
        return read_in_every_way(target, loader)


@scenario("documents that expired, inline metadata: it is gone with them")
def expired_inline(target: Target) -> str:
    with target.loading(InlineLayout()) as loader:
        revisions = [each for each in revisions_of(target, "expires-inline", 9) if not each.deleted]
        loader.load(revisions)
        ids = sorted({each.id for each in revisions})
        loader.expire(ids, EXPIRES_WITHIN_S, EXPIRY_DEADLINE_S)
        return read_in_every_way(target, loader, gone=tuple(ids))


@scenario("a document of a megabyte")
def large(target: Target) -> str:
    with target.loading(XattrLayout()) as loader:
        body = {"text": "x" * LARGE_BYTES}
        loader.load([Revision(id=f"{target.prefix}large", rev="1-a", channels=(f"{target.prefix}a",), body=body)])
        return read_in_every_way(target, loader)


@contextmanager
def node_of(target: Target) -> Iterator[tuple[Node, str]]:
    """A whole node with a Redis of its own, started; and the URL of that Redis.

    Raises:
        NotRun: we may not stream.
    """
    read(target)
    with tempfile.TemporaryDirectory(prefix="real-") as name:
        folder = Path(name)
        redis_folder = folder / "redis"
        redis_folder.mkdir()
        redis = EmbeddedRedis(redis_folder)
        try:
            tls = {"source__tls_ca_file": target.ca_file} if target.ca_file else {}
            with target.kv() as client:
                partitions = math.gcd(MOST_PARTITIONS, client.source.n_vbuckets)
            with Node("real", folder, redis.url, target, index__partitions=partitions, **tls) as node:
                yield node.start(), redis.url
        finally:
            redis.close()


def await_index(target: Target, node: Node, store_url: str) -> None:
    """Wait until the stable clock has reached what the bucket has now."""
    with target.kv() as client:
        highs = client.high_seqnos()

    def reached() -> bool:
        assert node.running, f"the node has ended: {node.log.read_text()[-500:]}"
        stable = stable_seqnos(store_url)
        return bool(stable) and all(stable[vb] >= high for vb, high in highs.items())

    until(reached, "the index to be complete")


@scenario("a node follows while documents are written, is killed, and goes on")
def node_killed(target: Target) -> str:
    with target.loading(XattrLayout()) as loader, node_of(target) as (node, store_url):
        revisions = list(revisions_of(target, "live", 4 * N_DOCUMENTS))
        cuts = [0, len(revisions) // 3, 2 * len(revisions) // 3, len(revisions)]
        for begin, end in itertools.pairwise(cuts):
            loader.load(revisions[begin:end])
            node.kill()
            node.start()
        await_index(target, node, store_url)
        expected = target.ours(loader.expected())
        check(target.ours(indexed_channels(store_url)), expected)
        return f"{sum(map(len, expected.values()))} entries, {len(cuts) - 1} kills"


@scenario("a node that was down while documents were deleted is told of each")
def deleted_meanwhile(target: Target) -> str:
    with target.loading(XattrLayout()) as loader, node_of(target) as (node, store_url):
        loader.load(each for each in revisions_of(target, "down") if not each.deleted)
        await_index(target, node, store_url)
        node.drain()
        deleted = [each for each in revisions_of(target, "down") if each.deleted]
        loader.load(deleted)
        node.start()
        await_index(target, node, store_url)
        check(target.ours(indexed_channels(store_url)), target.ours(loader.expected()))
        return f"{len(deleted)} deletions"


@scenario("a resync moves documents under the sequence they have")
def resynced(target: Target) -> str:
    with target.loading(XattrLayout()) as loader, node_of(target) as (node, store_url):
        revisions = list(revisions_of(target, "resync", 12))
        loader.load(revisions)
        await_index(target, node, store_url)
        newest = {each.id: each for each in revisions}
        moved = [
            Revision(id=each.id, rev=each.rev, channels=(f"{target.prefix}resynced",), body=each.body)
            for each in newest.values()
            if not each.deleted
        ]
        assert resync(loader.client, loader.layout, {each.id: each.channels for each in moved}) == len(moved)
        loader.note(moved)
        await_index(target, node, store_url)
        check(target.ours(indexed_channels(store_url)), target.ours(loader.expected()))
        return f"{len(moved)} documents"


@scenario("TLS")
def tls(target: Target) -> str:
    if not target.url.startswith("couchbases://"):
        raise NotRun("BUCKET is not couchbases://")
    with target.kv() as client:
        return f"{client.source.n_vbuckets} vbuckets"


@scenario("failover, rollback, rebalance, purge, a bucket made again")
def operators(_: Target) -> str:
    raise NotRun("only an operator of the cluster can make them happen; the dev bucket plays them")
