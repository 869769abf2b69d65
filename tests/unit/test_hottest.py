import pytest
from hypothesis import given
from hypothesis import strategies as st

from channelindex.stores.base import ChannelAppend
from workers.telemetry.hot_channels import WINDOW_S, Hot, Hottest, Note


def appends(**size_by_channel: int) -> list[ChannelAppend]:
    return [ChannelAppend(name, "group", 1, bytes(size), b"") for name, size in size_by_channel.items()]


def add(hottest: Hottest, took_s: float, **size_by_channel: int) -> None:
    hottest.add(appends(**size_by_channel), sum(size_by_channel.values()), took_s)


@pytest.fixture
def note() -> Note:
    return Note()


@pytest.fixture
def hottest(note: Note) -> Hottest:
    hottest = Hottest(note)
    hottest.turn(100.0)
    return hottest


def test_the_largest_channels_of_a_window_are_noted_with_their_slowest_batch(note, hottest):
    add(hottest, 0.010, a=3000, b=1000)
    add(hottest, 0.250, a=1500, b=4500)
    hottest.turn(104.0)
    assert note.read() == []
    hottest.turn(100.0 + WINDOW_S)
    assert note.read() == [Hot("b", 1100, 250, 75), Hot("a", 900, 250, 25)]


def test_a_window_without_a_batch_leaves_nothing_noted(note, hottest):
    add(hottest, 0.010, a=10)
    hottest.turn(105.0)
    assert len(note.read()) == 1
    hottest.turn(110.0)
    assert note.read() == []


def test_the_channel_in_the_slowest_batch_is_noted_however_small(note, hottest):
    add(hottest, 3.0, small=10)
    for _ in range(5):
        add(hottest, 0.001, **{f"large{number}": 1000 + number for number in range(6)})
    hottest.turn(105.0)
    assert [hot.channel for hot in note.read()] == ["large5", "large4", "large3", "small"]


def test_what_one_channel_has_of_several_epochs_is_one(note, hottest):
    parts = [ChannelAppend("a", group, epoch, bytes(50), b"") for epoch, group in enumerate("xyz")]
    hottest.add(parts, 150, 0.02)
    hottest.turn(105.0)
    assert note.read() == [Hot("a", 30, 20, 100)]


def test_the_channel_of_everything_does_not_count(note, hottest):
    hottest.add([*appends(a=100), ChannelAppend("*", "group", 1, bytes(300), b"")], 400, 0.5)
    hottest.turn(105.0)
    assert note.read() == [Hot("a", 20, 500, 25)]


@given(st.lists(st.text(max_size=400), max_size=4), st.integers(0, 10**12), st.integers(0, 10**7))
def test_any_names_can_be_noted(channels, rate, batch_ms):
    note = Note()
    note.write([Hot(channel, rate, batch_ms, 100) for channel in channels])
    for channel, told in zip(channels, note.read(), strict=True):
        assert told[1:] == (rate, batch_ms, 100)
        assert channel.startswith(told.channel)
        assert told.channel == channel or len(told.channel.encode()) > 56


def test_a_note_that_is_being_written_is_none():
    note = Note()
    note._memory[:4] = b"\x20\x00\x94\x94"
    assert note.read() == []
