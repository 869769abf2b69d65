"""A bucket's half of compaction alone: replies that are lost, compactors that die, rotations that stopped half way."""

import uuid
from typing import Any

import pytest

from channelindex.blocks import HEADER, pack_frame, pack_pairs
from channelindex.compaction.compactor import Compactor
from channelindex.reading.changes_reader import ChangesReader
from channelindex.settings import CompactionSettings
from channelindex.stores.compacting import GroupChange, Switch
from channelindex.stores.couchbase.compaction import CouchbaseCompaction
from channelindex.stores.couchbase.directories import Directories
from channelindex.stores.couchbase.keys import Keys as CouchbaseKeys
from channelindex.stores.couchbase.link import Link
from tests.support.stores import GROUP, META, Backend, append, checkpoints, entry, stored_blocks

SETTINGS = CompactionSettings(min_lag_s=1.0, dead_retention_s=1.0, grace_s=60.0)


class _Dies(Exception):
    pass


class _AskingAgain(Link):
    """A bucket's connection that repeats every second replacement, as the SDK does whose reply was lost."""

    def __init__(self, link: Link) -> None:
        self._real = link
        self._repeats = False

    def get(self, keys):
        return self._real.get(keys)

    def insert(self, values):
        return self._real.insert(values)

    def expire(self, keys, after_s):
        self._real.expire(keys, after_s)

    def replace(self, values):
        self._repeats = not self._repeats
        changed = self._real.replace(values)
        return self._real.replace(values) if self._repeats else changed

    def close(self):
        """The connection is the test's."""


def test_a_switch_that_is_said_to_have_lost_a_comparison_has_happened(couchbase_url):
    """What it wrote must not be removed again."""
    backend = Backend(couchbase_url, f"compact-{uuid.uuid4().hex}")
    _write_revisions(backend)
    store = CouchbaseCompaction(backend.settings, _AskingAgain(backend.link()))
    result = Compactor(store, backend.reader(), SETTINGS, 60, clock=lambda: 1e6).compact("A")
    assert result.outcome == "compacted"
    assert _told_by(backend.reader()) == {"doc-1": 7, "doc-0": 8}
    store.discard("A", next(iter(stored_blocks(backend.reader(), "A"))), 9)
    assert _told_by(backend.reader()) == {"doc-1": 7, "doc-0": 8}, "what is named stays"
    backend.close()


def _write_revisions(backend: Backend) -> Any:
    """Eight revisions of two documents, under an epoch that is over; the owner."""
    owner, writer = backend.owner(), backend.writer(block_bytes=100)
    owner.create_or_check(META)
    owner.begin(0, 1, "n1")
    for seqno in range(1, 9):
        writer.write([append("A", 1, entry(0, seqno, f"doc-{seqno % 2}", f"{seqno}-x"))])
    owner.advance(1, checkpoints({0: 8}))
    owner.note_moments(1, [0], 1000.0)
    owner.begin(0, 2, "n2")
    return owner


class _MortalLink(Link):
    """A bucket's connection whose change of number *dies_at* is the last, done or not."""

    def __init__(self, link: Link, dies_at: int, *, happens: bool) -> None:
        self._real = link
        self._dies_at = dies_at
        self._happens = happens

    def get(self, keys):
        return self._real.get(keys)

    def insert(self, values):
        return self._counted(self._real.insert, values)

    def replace(self, values):
        return self._counted(self._real.replace, values)

    def expire(self, keys, after_s):
        return self._counted(self._real.expire, keys, after_s)

    def close(self):
        """The connection is the test's."""

    def _counted(self, call, values, *arguments):
        if values:
            self._dies_at -= 1
        if self._dies_at == 0:
            if self._happens:
                call(values, *arguments)
            raise _Dies
        return call(values, *arguments)


@pytest.mark.parametrize("happens", [False, True])
def test_a_compactor_that_dies_at_any_request_of_a_bucket_leaves_what_the_next_one_removes(couchbase_url, happens):
    for dies_at in range(1, 20):
        backend = Backend(couchbase_url, f"compact-{uuid.uuid4().hex}")
        owner, reader, link = _write_revisions(backend), backend.reader(), backend.link()
        mortal = CouchbaseCompaction(backend.settings, _MortalLink(link, dies_at, happens=happens))
        died = False
        try:
            Compactor(mortal, reader, SETTINGS, 60, clock=lambda: 1e6).compact("A")
        except _Dies:
            died = True
        assert _told_by(reader) == {"doc-1": 7, "doc-0": 8}
        backend.writer().write([append("A", 2, entry(0, 9, "doc-1", "9-x"))])
        owner.advance(2, checkpoints({0: 9}))
        owner.note_moments(2, [0], 2000.0)
        owner.begin(0, 3, "n3")
        result = Compactor(backend.compaction(), reader, SETTINGS, 60, clock=lambda: 2e6).compact("A")
        assert result.outcome in ("compacted", "unchanged")
        assert _told_by(reader) == {"doc-1": 9, "doc-0": 8}
        directory = Directories(link, CouchbaseKeys(backend.index_name)).read(["A"])["A"].directory
        assert directory.pending is None or result.outcome == "unchanged"
        backend.close()
        if not died:
            assert dies_at > 3
            return
    raise AssertionError("a compaction never ended")


def test_a_group_begins_again_where_a_rotation_of_a_former_owner_stopped(couchbase_url):
    """It had written the next block, and not named it: a header that counts all before, and no entry."""
    backend = Backend(couchbase_url, f"compact-{uuid.uuid4().hex}")
    owner, store = _write_revisions(backend), backend.compaction()
    (sizes,) = store.sizes(["A"])
    assert sizes
    known = sizes.groups[GROUP].directory
    next_block = CouchbaseKeys(backend.index_name).block("A", GROUP, known.number + 1)
    backend.link().insert({next_block: pack_frame(HEADER, 1, pack_pairs({0: 8}))})
    assert store.switch(Switch("A", 0, [GroupChange(GROUP, known, removed=True)], None, 10, 20, b"", 60))
    backend.writer().write([append("A", 2, entry(0, 9, "doc-1", "9-x"))])
    owner.advance(2, checkpoints({0: 9}))
    assert _told_by(backend.reader()) == {"doc-1": 9}
    backend.close()


def _told_by(reader) -> dict[str, int]:
    return {change.id: change.seqno for change in ChangesReader(reader).changes(["A"]).entries}
