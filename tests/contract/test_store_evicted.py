"""One key of an index in Redis is evicted or deleted, of each kind: that is named and made good, or does no harm."""

import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from channelindex import epochs
from channelindex.errors import IndexCorrupt, OwnershipLost
from channelindex.stores import redis as redis_store
from channelindex.stores.redis.keys import Keys
from tests.support.index_of_all_kinds import CHANNEL, DOCUMENT, PARTITIONS, USER, IndexOfAllKinds
from tests.support.redis_any import open_any
from tests.support.stores import GROUP, META, Backend


class Index(IndexOfAllKinds):
    """One in a Redis."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.keys = Keys(backend.index_name)
        super().__init__(backend)

    def block(self, number: int) -> str:
        return self.keys.block(CHANNEL, GROUP, number)

    def active(self) -> str:
        return self.block(self.active_number())

    def slot(self) -> int:
        return int(self.keys.channel(CHANNEL).partition("{")[2].partition("}")[0])

    def evict(self, key: str) -> None:
        with closing(open_any(self.backend.url)) as client:
            assert client.delete(key) == 1, f"there is no {key}"


@pytest.fixture(params=["redis", "cluster"])
def index(request, monkeypatch) -> Iterator[Index]:
    monkeypatch.setattr(epochs, "HISTORY_BYTES", 0)  # so that starts go to the archive at once
    backend = Backend(request.getfixturevalue(f"{request.param}_url"), f"test-{uuid.uuid4().hex}")
    yield Index(backend)
    backend.close()


Look = Callable[[Index], object]


NAMED_AND_WHOLE_AGAIN: dict[str, tuple[Callable[[Index], str], Look]] = {
    "meta": (lambda index: index.keys.meta, Index.write),
    "meta, for a reader": (lambda index: index.keys.meta, Index.read),
    "view": (lambda index: index.keys.view, Index.write),
    "view, for a reader": (lambda index: index.keys.view, Index.read),
    "c:<channel>": (lambda index: index.keys.channel(CHANNEL), Index.read),
}


@pytest.mark.parametrize("kind", NAMED_AND_WHOLE_AGAIN)
def test_a_key_that_others_can_replace_is_named_and_put_back(index, kind):
    key_of, look = NAMED_AND_WHOLE_AGAIN[kind]
    before = index.read()
    index.evict(key_of(index))
    with pytest.raises(IndexCorrupt, match=re.escape(key_of(index))):
        look(index)
    index.owner.restore(META)
    index.owner.repair_channels()
    assert index.read()[: len(before)] == before
    index.write()


NAMED_AND_INDEXED_AGAIN: dict[str, tuple[Callable[[Index], str], Look]] = {
    "p:<partition>": (lambda index: index.keys.partition(0), Index.write),
    "p:<partition>, for a reader": (lambda index: index.keys.partition(0), Index.read),
    "h:<partition>": (lambda index: index.keys.archive(0), Index.read),
}


@pytest.mark.parametrize("kind", NAMED_AND_INDEXED_AGAIN)
def test_a_partition_that_lost_its_record_is_named_and_begins_at_its_beginning(index, kind):
    key_of, look = NAMED_AND_INDEXED_AGAIN[kind]
    index.evict(key_of(index))
    with pytest.raises(IndexCorrupt, match=r"missing.*channelindex repair"):
        look(index)
    assert list(index.owner.restore(META).partitions) == [0]
    index.begin()
    index.n_written = 0
    index.write()
    assert index.read() == [1]


@pytest.mark.parametrize("is_active", [True, False])
def test_a_block_that_is_gone_is_named_and_its_place_is_put_back(index, is_active):
    key, before = index.active() if is_active else index.block(0), index.read()
    index.evict(key)
    with pytest.raises(IndexCorrupt, match=r"is (gone|missing)"):
        index.read()
    if is_active:
        with pytest.raises(IndexCorrupt, match=r"(is gone|not both there).*channelindex repair"):
            index.write()
    assert len(index.owner.repair_channels().blocks) == 1
    assert set(index.read()) < set(before)
    index.write()
    assert index.read()[-1] == index.n_written


def test_a_counter_of_epochs_that_is_gone_hands_out_none_again(index):
    before = index.epoch
    index.evict(index.keys.epoch)
    index.begin()
    assert index.epoch > before


def test_a_stable_counter_that_is_gone_wakes_those_who_wait_and_rises_on(index):
    before = index.reader.stable_counter()
    index.evict(index.keys.stable)
    assert index.reader.wait_stable(before, 5.0) != before
    index.write()
    assert index.reader.stable_counter() > before


def test_a_timeline_that_is_gone_has_a_moment_again_though_its_partition_rests(index):
    index.evict(index.keys.timeline(0))
    index.evict(index.keys.timeline(3))
    index.write()
    assert all(index.reader.timelines(PARTITIONS))


@pytest.mark.parametrize("heal", ["a writer that locates the channel", "repair"])
def test_names_of_channels_that_are_gone_are_noted_again(index, heal):
    index.evict(index.keys.names(index.slot()))
    assert index.read() == list(range(1, index.n_written + 1)), "nobody needs them who has the directory"
    if heal == "repair":
        index.owner.repair_channels()
    else:
        index.begin()
        index.write()
    index.evict(index.keys.channel(CHANNEL))
    with pytest.raises(IndexCorrupt):
        index.read()


def test_marks_that_are_gone_end_the_epoch_and_are_set_again_by_the_next(index):
    """A slot without its marks looks like one that lost all it had: what is stable is vouched for anew."""
    if "cluster" not in index.backend.url:  # one Redis loses records with blocks, and has none
        with closing(open_any(index.backend.url)) as client:
            assert not client.exists(index.keys.marks(index.slot()))
        return
    index.evict(index.keys.marks(index.slot()))
    with pytest.raises(OwnershipLost):
        index.write()
    index.n_written -= 1
    index.begin()
    index.write()
    assert index.read() == list(range(1, index.n_written + 1))


def test_counters_of_principals_that_are_gone_are_others_and_count_on(index):
    """Who compares them sees a change, and looks at the document."""
    before = index.reader.principal_counter(USER)
    index.evict(index.keys.principals)
    assert index.reader.principal_counter(USER) != before
    index.write()
    assert 0 < index.reader.principal_counter(USER) != before


def test_a_quarantine_that_is_gone_takes_new_documents(index):
    index.evict(index.keys.quarantine)
    index.evict(index.keys.quarantined)
    assert index.reader.quarantined() == (0, [])
    index.owner.quarantine([DOCUMENT])
    assert index.reader.quarantined() == (1, [DOCUMENT])


def test_every_kind_of_key_is_among_those_that_are_lost_here():
    """KEYSPACE.md names them all; those of the tests above that have no table are named here."""
    text = (Path(redis_store.__file__).parent / "KEYSPACE.md").read_text()
    kinds = {kind.partition("}:")[2] for kind in re.findall(r"^\| `(\{[^`]+)` \|", text, re.MULTILINE)}
    tried = {name.partition(",")[0] for name in (*NAMED_AND_WHOLE_AGAIN, *NAMED_AND_INDEXED_AGAIN)}
    others = {"epoch", "stable", "t:<partition>", "n", "m", "principals", "quarantine", "quarantined"}
    assert kinds == tried | others | {"b:<group>:<number>:<channel>"}
