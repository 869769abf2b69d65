"""What only a store in a bucket can get wrong: requests that fail, documents that are gone or damaged, long keys."""

from types import SimpleNamespace
from typing import Any

import pytest
from couchbase import exceptions as sdk

from channelindex.blocks import HEADER, pack_frame
from channelindex.errors import IndexCorrupt, StaleEpoch, StoreUnavailable
from channelindex.stores.base import Quarantined
from channelindex.stores.block_writer import BlockWriter
from channelindex.stores.couchbase.keys import Keys
from channelindex.stores.couchbase.link import Stored
from channelindex.stores.couchbase.names import add_names, iter_names
from channelindex.stores.couchbase.owner import CouchbaseOwner
from channelindex.stores.couchbase.reader import CouchbaseReader
from channelindex.stores.couchbase.writer import CouchbaseBlocks
from tests.support.couchbase_faults import FAULTS, FaultyLink
from tests.support.stores import (
    GROUP,
    META,
    all_entries,
    append,
    check_headers,
    checkpoints,
    entry,
    until_done,
    visible_entries,
    write_until_done,
)

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
    meta = until_done(lambda: owner.create_or_check(META))
    assert meta == META
    epoch = until_done(owner.next_epoch)
    assert until_done(lambda: owner.begin(0, epoch, "n1")).epoch == epoch
    for seqno in range(1, 31):
        batch = [append(channel, epoch, entry(seqno % 4, seqno)) for channel in ("A", "B", f"C{seqno % 5}")]
        write_until_done(writer, batch, ["_sync:user:u"])
        until_done(lambda seqno=seqno: owner.advance(epoch, checkpoints({seqno % 4: seqno})))
        for late in (late for link in links for late in _taken(link.late)):
            late()
    assert all(link.n_faults for link in links[:2])
    assert set(until_done(lambda: list(reader.channels()))) == {"A", "B", *(f"C{number}" for number in range(5))}
    for channel in ("A", "B"):
        visible = until_done(lambda channel=channel: visible_entries(reader, channel))
        assert visible == {entry(seqno % 4, seqno) for seqno in range(1, 31)}
        check_headers(backend.reader(), channel, backend.reader().partition_records(), partition_width=4)
        assert backend.reader().channel_states([channel])[0].counter >= 30
    assert backend.reader().principal_counter("_sync:user:u") >= 30
    with pytest.raises(StaleEpoch):
        until_done(lambda: owner.advance(epoch - 1, checkpoints({0: 99})))


def _taken(items: list[Any]) -> list[Any]:
    taken, items[:] = items[:], []
    return taken


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
