"""What is read of many channels at once is what is read of each, in few requests, with bounded memory."""

from contextlib import closing
from typing import Any

import pytest

from channelindex.model import Entry
from channelindex.reading import retained
from channelindex.reading.retained import read_retained
from channelindex.reading.snapshot import IndexSnapshot
from tests.support.indexing import Row, SmallIndex

CHANNELS = [f"channel-{number}" for number in range(9)]


class CountingStore:
    """A reader of an index that counts what it is asked for."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.n_states: list[int] = []
        self.n_blocks: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def channel_states(self, channels):
        self.n_states.append(len(channels))
        return self._store.channel_states(channels)

    def blocks(self, refs):
        self.n_blocks.append(len(refs))
        return self._store.blocks(refs)


@pytest.fixture
def index():
    with closing(SmallIndex()) as small:
        epoch = small.begin()
        for seqno in range(1, 31):
            rows = [Row(name, 0, seqno, f"doc{seqno}") for name in CHANNELS[:3]]
            small.write(epoch, [*rows, Row(CHANNELS[3 + seqno % 5], 1, seqno, "alone")])
        small.advance(epoch, {0: 25, 1: 30})
        yield small


def _read(index, names=tuple(CHANNELS)) -> tuple[dict[str, list[Entry]], CountingStore]:
    store = CountingStore(index.reader)
    found = {each.channel: list(each.entries) for each in read_retained(store, names, IndexSnapshot.take(index.reader))}
    assert list(found) == list(names)
    return found, store


def test_many_channels_are_read_in_one_request_each_of_states_and_blocks(index):
    found, store = _read(index)
    assert [entry.seqno for entry in found[CHANNELS[0]]] == list(range(1, 26)), "up to the stable clock"
    assert [len(found[name]) for name in CHANNELS[3:]] == [1, 1, 1, 1, 1, 0]
    assert store.n_states == [len(CHANNELS)]
    alone = {name: _read(index, (name,))[0][name] for name in CHANNELS}
    assert found == alone


@pytest.mark.parametrize(("n_channels", "n_bytes"), [(2, 1 << 20), (500, 1), (500, 2500)])
def test_a_read_is_bounded_in_channels_and_bytes_and_finds_the_same(index, monkeypatch, n_channels, n_bytes):
    whole, at_once = _read(index)
    monkeypatch.setattr(retained, "CHANNELS_PER_READ", n_channels)
    monkeypatch.setattr(retained, "BYTES_PER_WALK", n_bytes)
    found, store = _read(index)
    assert found == whole
    assert max(store.n_states) == min(n_channels, len(CHANNELS))
    assert sum(store.n_blocks) == sum(at_once.n_blocks)
    assert max(store.n_blocks) < max(at_once.n_blocks)
