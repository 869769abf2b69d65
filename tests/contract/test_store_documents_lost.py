"""One document of an index in a bucket is removed, of each kind: that is named and made good, or does no harm."""

import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from channelindex import epochs
from channelindex.checking.rewind import rewind_partitions
from channelindex.errors import IndexCorrupt, IndexMissing
from channelindex.stores import couchbase as couchbase_store
from channelindex.stores.couchbase.keys import Keys
from channelindex.stores.couchbase.link import Stored
from tests.support.index_of_all_kinds import CHANNEL, DOCUMENT, PARTITIONS, USER, IndexOfAllKinds
from tests.support.stores import GROUP, META, Backend, append, checkpoints, entry


class Index(IndexOfAllKinds):
    """One in a bucket."""

    def __init__(self, backend: Backend) -> None:
        self.keys = Keys(backend.index_name)
        self.link = backend.link()
        self.new_owner = backend.owner
        self.new_writer = backend.writer
        super().__init__(backend)

    def block(self, number: int) -> str:
        return self.keys.block(CHANNEL, GROUP, number)

    def lose(self, key: str) -> None:
        self.link._opened().remove(key)
        assert self.link.get([key]) == [None]


@pytest.fixture
def index(couchbase_url, monkeypatch) -> Iterator[Index]:
    monkeypatch.setattr(epochs, "HISTORY_BYTES", 0)  # so that starts go to the archive at once
    with closing(Backend(couchbase_url, f"test-{uuid.uuid4().hex}")) as backend:
        yield Index(backend)


def test_a_meta_record_that_is_gone_is_named_and_put_back(index):
    before = index.read()
    index.lose(index.keys.meta)
    for look in (index.write, lambda: index.new_owner().create_or_check(META)):
        with pytest.raises(IndexCorrupt, match=rf"{index.keys.meta}.*channelindex repair"):
            look()
    with pytest.raises(IndexMissing):
        index.read()
    assert index.owner.restore(META).wrote_meta
    assert index.read() == before
    index.n_written -= 1
    index.write()


LOST_OF_A_PARTITION: dict[str, Callable[[Index], str]] = {
    "p:<n_partitions>x<width>:<partition>": lambda index: index.keys.partition(META, 0),
    "a:<partition>": lambda index: index.keys.archive(0),
}


@pytest.mark.parametrize("kind", LOST_OF_A_PARTITION)
def test_a_partition_that_lost_its_record_is_named_and_begins_at_its_beginning(index, kind):
    index.lose(LOST_OF_A_PARTITION[kind](index))
    with pytest.raises(IndexCorrupt, match=r"missing.*channelindex repair"):
        index.read()
    assert list(index.owner.restore(META).partitions) == [0]
    index.begin()
    index.n_written = 0
    index.write()
    assert index.read() == [1]


def test_an_index_that_is_gone_as_a_whole_is_missing_and_not_damaged(index):
    for key in (index.keys.meta, *(index.keys.partition(META, partition) for partition in PARTITIONS)):
        index.lose(key)
    with pytest.raises(IndexMissing):
        index.write()
    assert index.new_owner().create_or_check(META) == META


@pytest.mark.parametrize("is_active", [True, False])
def test_a_block_that_is_gone_is_named_and_its_place_is_put_back(index, is_active):
    number, before = index.active_number() if is_active else 0, index.read()
    index.lose(index.block(number))
    with pytest.raises(IndexCorrupt, match=r"is (gone|missing)"):
        index.read()
    if is_active:
        with pytest.raises(IndexCorrupt, match=r"is gone.*channelindex repair"):
            index.write()
    assert len(index.owner.repair_channels().blocks) == 1
    assert index.owner.repair_channels().blocks == ()
    assert set(index.read()) < set(before)
    index.write()
    assert index.read()[-1] == index.n_written


@pytest.mark.parametrize("is_active", [True, False])
def test_a_block_that_is_damaged_is_named_and_replaced_by_what_is_whole(index, is_active):
    key, before = index.block(index.active_number() if is_active else 0), index.read()
    (whole,) = index.link.get([key])
    assert whole is not None
    damaged = whole.value[:-1] + bytes([whole.value[-1] ^ 1])
    assert not index.link.replace({key: Stored(damaged, whole.cas)})
    with pytest.raises(IndexCorrupt, match="checksum"):
        index.read()
    assert len(index.owner.repair_channels().blocks) == 1
    assert index.owner.repair_channels().blocks == ()
    assert set(index.read()) < set(before)
    index.write()
    assert index.read()[-1] == index.n_written


@pytest.mark.parametrize("group_began_since", [False, True])
def test_a_directory_that_is_gone_is_named_by_writers_and_its_channel_begins_anew(index, group_began_since):
    """What it held is indexed again by whoever repairs: a bucket does not list its documents."""
    index.lose(index.keys.directory(CHANNEL))
    if group_began_since:
        index.writer.write([append(CHANNEL, index.epoch, entry(4, 1), group="another")])
        index.owner.advance(index.epoch, checkpoints({4: 1}))
    index.begin()
    with pytest.raises(IndexCorrupt, match=rf"{re.escape(index.keys.directory(CHANNEL))}.*repair --channel"):
        index.write()
    repaired = index.owner.repair_channels([CHANNEL])
    assert repaired.directories == (() if group_began_since else (index.keys.directory(CHANNEL),))
    index.n_written -= 1
    index.write()
    index.write()
    assert sorted(index.read()) == [*([1] if group_began_since else []), index.n_written - 1, index.n_written]


def test_a_writer_that_knows_a_block_that_no_directory_names_leaves_it_with_the_next_epoch(index):
    index.writer = index.new_writer()
    index.write()
    index.lose(index.keys.directory(CHANNEL))
    index.write()
    assert index.read() == [], "nobody looked for the directory"
    assert len(index.owner.repair_channels().directories) == 1
    assert len(list(rewind_partitions(index.owner, index.reader, PARTITIONS, {}, "repair"))) == len(PARTITIONS)
    index.begin()
    index.write()
    assert index.read() == [index.n_written]


def test_a_list_of_names_that_is_gone_is_written_again_by_name(index):
    index.lose(index.keys.list_of(CHANNEL))
    assert list(index.reader.channels()) == []
    before = index.read()
    index.write()
    assert index.read() == [*before, index.n_written], "nobody needs it who knows the name"
    index.owner.repair_channels([CHANNEL])
    assert list(index.reader.channels()) == [CHANNEL]


def test_a_counter_of_epochs_that_is_gone_hands_out_none_again(index):
    before = index.epoch
    index.lose(index.keys.epoch)
    index.begin()
    assert index.epoch > before


def test_a_stable_counter_that_is_gone_wakes_those_who_wait_and_rises_on(index):
    before = index.reader.stable_counter()
    index.lose(index.keys.stable)
    assert index.reader.wait_stable(before, 5.0) != before
    index.write()
    assert index.reader.stable_counter() > before


def test_a_timeline_that_is_gone_has_a_moment_again(index):
    index.lose(index.keys.timeline(0))
    index.write()
    assert all(index.reader.timelines(PARTITIONS))


@pytest.mark.parametrize("kind", ["u:<name>", "principals"])
def test_counters_of_principals_that_are_gone_are_others_and_count_on(index, kind):
    """Who compares them sees a change, and looks at the document."""
    principal, key = (USER, index.keys.principal(USER)) if kind == "u:<name>" else ("", index.keys.all_principals)
    before = index.reader.principal_counter(principal)
    index.lose(key)
    assert index.reader.principal_counter(principal) != before
    index.write()
    assert 0 < index.reader.principal_counter(principal) != before


def test_a_quarantine_that_is_gone_takes_new_documents(index):
    index.lose(index.keys.quarantine)
    assert index.reader.quarantined() == (0, [])
    index.owner.quarantine([DOCUMENT])
    assert index.reader.quarantined() == (1, [DOCUMENT])


def test_every_kind_of_document_is_among_those_that_are_lost_here():
    """KEYSPACE.md names them all; those of the tests above that have no table are named here."""
    text = (Path(couchbase_store.__file__).parent / "KEYSPACE.md").read_text()
    kinds = set(re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE))
    others = {"meta", "epoch", "t:<partition>", "stable", "u:<name>", "principals", "quarantine", "l:<0 to 1023>"}
    assert kinds == {*LOST_OF_A_PARTITION, *others, "c:<name>", "b:<group>:<number>:<name>"}
