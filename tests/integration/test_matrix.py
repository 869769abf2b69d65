"""Every way in which a bucket can hold what Sync Gateway wrote, read with every setting that reads it.

Where the metadata lies, how the bucket stores values, whence they come, and what `source.metadata` and
`source.compression` say: 162 cells, each with documents that live, moved, were deleted and expired. The index of each
is compared with what was written, which no code of the product computes. A stream without bodies contradicts itself in
some of these cells (see docs/dcp-client.md), so that a cell that was never tried lost all its documents.

`source.metadata = "xattr"` does not see inline metadata, as its documentation says: there, and only there, less is
expected.
"""

import itertools
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from channelindex.feeds.base import SNAPPY
from channelindex.feeds.dcp.exchange import Request
from channelindex.feeds.dcp.kv import KvClient
from channelindex.mcbp import Feature, Op, Status
from devbucket import DevBucket, DevBucketConfig
from devbucket.items import compressed
from devbucket.sync_gateway.layouts import InlineLayout, Layout, XattrLayout
from devbucket.sync_gateway.loader import Loader
from devbucket.sync_gateway.revisions import Revision
from devbucket.vbucket import COMPRESSION_MODES
from tests.support.history import Line, Membership, expected_channels
from tests.support.mcbp_client import RawClient
from tests.support.one_pass import index_once
from tests.support.running import connect, source_of

N_VBUCKETS = 8
N_DOCUMENTS = 24
BODY = {"text": "lorem ipsum " * 20}
"""Compresses well: what gets no shorter by it is never stored compressed in memory."""
LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "inline": (InlineLayout(),),
    "xattr": (XattrLayout(),),
    "both": (InlineLayout(), XattrLayout()),
}


def revisions_of(layout: Layout) -> list[Revision]:
    """Some revisions of each document; every third one is deleted at last, every fourth moves."""
    name = type(layout).__name__
    rnd = random.Random(name)
    revisions = []
    for number in range(N_DOCUMENTS):
        channels = tuple(sorted(rnd.sample(("a", "b", "c", "d"), 2)))
        history = [Revision(id=f"{name}-{number}", rev="1-x", channels=channels, body=BODY)]
        if number % 4 == 1:
            history.append(Revision(id=history[0].id, rev="2-x", channels=("a", "e"), body=BODY))
        if number % 3 == 2:
            history.append(Revision(id=history[0].id, rev="3-x", channels=(), deleted=True))
        revisions += history
    return revisions


def expires(revision: Revision) -> bool:
    return revision.id.endswith(("-0", "-4", "-9"))


def write(bucket: DevBucket, layouts: tuple[Layout, ...]) -> list[tuple[Layout, Revision]]:
    """Fill the bucket with revisions of each layout; let some documents expire; all that was written, in order."""
    written = []
    with connect(bucket) as client:
        for layout in layouts:
            revisions = revisions_of(layout)
            assert Loader(client, layout).load(revisions) == len(revisions)
            written += [(layout, revision) for revision in revisions]
        if InlineLayout in map(type, layouts):
            send_compressed(bucket, client)
        let_expire(client, {revision.id for _, revision in written if expires(revision)})
    return written


def send_compressed(bucket: DevBucket, client: KvClient) -> None:
    """Write some inline documents anew, unchanged, as a client does that compresses."""
    raw = RawClient(bucket.port).log_in((0x06, 0x07, 0x08, 0x0B, Feature.SNAPPY))
    for number in range(0, N_DOCUMENTS, 2):
        key = f"InlineLayout-{number}".encode()
        document = client.get(key)
        assert document is not None
        assert document.body is not None
        stored = raw.call(
            Op.SET,
            vbucket=client.vbucket_of(key),
            key=key,
            extras=bytes(8),
            value=compressed(document.body),
            datatype=SNAPPY,
        )
        assert stored.status == Status.SUCCESS
    raw.close()


def let_expire(client: KvClient, ids: set[str]) -> None:
    """Give documents an expiry that has passed, and read them, by which they expire."""
    passed = (int(time.time()) - 1).to_bytes(4, "big")
    touched = client.pipeline([Request(Op.TOUCH, id_.encode(), passed) for id_ in sorted(ids)])
    assert {answer.status for answer in touched} == {Status.SUCCESS}
    assert all(client.get(id_.encode()) is None for id_ in ids)


def expected(written: list[tuple[Layout, Revision]], setting: str) -> Membership:
    """What the index has to hold, which begins after all was written.

    An inline document that expired has taken its metadata along; an xattr document's tombstone has it as it was.
    """
    lines: list[Line] = []
    for layout, revision in written:
        inline = isinstance(layout, InlineLayout)
        if not (inline and (setting == "xattr" or expires(revision))):
            lines.append(
                {"id": revision.id, "rev": revision.rev, "channels": revision.channels, "deleted": revision.deleted}
            )
    return expected_channels(lines)


@contextmanager
def bucket_that_holds(
    layouts: tuple[Layout, ...], compression_mode: str, whence: str, folder: Path
) -> Iterator[tuple[DevBucket, list[tuple[Layout, Revision]]]]:
    """A bucket after all was written, with its values in memory, on disk, or after a restart of its process."""
    file = folder / "bucket.db" if whence == "restarted" else None
    config = DevBucketConfig(n_vbuckets=N_VBUCKETS, compression_mode=compression_mode, file=file)
    with DevBucket(config) as bucket:
        written = write(bucket, layouts)
        if whence == "evicted":
            assert bucket.evict() > 0
        if whence != "restarted":
            yield bucket, written
    if whence == "restarted":
        with DevBucket(config) as bucket:
            yield bucket, written


@pytest.mark.parametrize("whence", ["resident", "evicted", "restarted"])
@pytest.mark.parametrize("compression_mode", COMPRESSION_MODES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_index_holds_what_was_written(layout: str, compression_mode: str, whence: str, tmp_path: Path):
    with bucket_that_holds(LAYOUTS[layout], compression_mode, whence, tmp_path) as (bucket, written):
        for metadata, compression in itertools.product(("auto", "xattr", "inline"), (True, False)):
            cell = f"source.metadata={metadata} source.compression={compression}"
            assert index_once(source_of(bucket, metadata=metadata, compression=compression)) == expected(
                written, metadata
            ), cell
