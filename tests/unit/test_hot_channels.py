import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.telemetry.hot_channels import WINDOW_S, HotChannel, HotChannels, SharedNote


def add(hot_channels: HotChannels, took_s: float, **size_by_channel: int) -> None:
    hot_channels.add(size_by_channel.items(), sum(size_by_channel.values()), took_s)


@pytest.fixture
def note() -> SharedNote:
    return SharedNote()


@pytest.fixture
def hot_channels(note: SharedNote) -> HotChannels:
    hot_channels = HotChannels(note)
    hot_channels.publish_if_due(100.0)
    return hot_channels


def test_the_largest_channels_of_a_window_are_noted_with_their_slowest_batch(note, hot_channels):
    add(hot_channels, 0.010, a=3000, b=1000)
    add(hot_channels, 0.250, a=1500, b=4500)
    hot_channels.publish_if_due(104.0)
    assert note.read() == []
    hot_channels.publish_if_due(100.0 + WINDOW_S)
    assert note.read() == [HotChannel("b", 1100, 250, 75), HotChannel("a", 900, 250, 25)]


def test_a_window_without_a_batch_leaves_nothing_noted(note, hot_channels):
    add(hot_channels, 0.010, a=10)
    hot_channels.publish_if_due(105.0)
    assert len(note.read()) == 1
    hot_channels.publish_if_due(110.0)
    assert note.read() == []


def test_the_channel_in_the_slowest_batch_is_noted_however_small(note, hot_channels):
    add(hot_channels, 3.0, small=10)
    for _ in range(5):
        add(hot_channels, 0.001, **{f"large{number}": 1000 + number for number in range(6)})
    hot_channels.publish_if_due(105.0)
    assert [hot.channel for hot in note.read()] == ["large5", "large4", "large3", "small"]


def test_what_one_channel_has_of_several_epochs_is_one(note, hot_channels):
    hot_channels.add([("a", 50)] * 3, 150, 0.02)
    hot_channels.publish_if_due(105.0)
    assert note.read() == [HotChannel("a", 30, 20, 100)]


def test_the_channel_of_everything_does_not_count(note, hot_channels):
    hot_channels.add([("*", 300), ("a", 100)], 400, 0.5)
    hot_channels.publish_if_due(105.0)
    assert note.read() == [HotChannel("a", 20, 500, 25)]


@given(st.lists(st.text(max_size=400), max_size=4), st.integers(0, 10**12), st.integers(0, 10**7))
def test_any_names_can_be_noted(channels, rate, batch_ms):
    note = SharedNote()
    note.write([HotChannel(channel, rate, batch_ms, 100) for channel in channels])
    for channel, told in zip(channels, note.read(), strict=True):
        assert told[1:] == (rate, batch_ms, 100)
        assert channel.startswith(told.channel)
        assert told.channel == channel or len(told.channel.encode()) > 56


def test_a_note_that_is_being_written_is_none():
    note = SharedNote()
    note._memory[:4] = b"\x20\x00\x94\x94"
    assert note.read() == []
