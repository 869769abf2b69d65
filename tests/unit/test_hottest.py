from hypothesis import given
from hypothesis import strategies as st

from channelindex.stores.base import ChannelAppend
from workers.hottest import WINDOW_S, Hot, Hottest, Note


def appends(**size_by_channel: int) -> list[ChannelAppend]:
    return [ChannelAppend(name, "group", 1, bytes(size), b"") for name, size in size_by_channel.items()]


def test_the_channel_with_the_most_bytes_of_a_window_is_noted():
    note = Note()
    hottest = Hottest(note)
    hottest.add([], 100.0)
    hottest.add(appends(a=300, b=200), 100.5)
    hottest.add(appends(b=1000), 101.0)
    assert note.read() is None
    hottest.add(appends(a=100), 100.0 + WINDOW_S)
    assert note.read() == Hot("b", 500)
    hottest.add([], 100.0 + 2 * WINDOW_S)
    assert note.read() is None


def test_the_channel_of_everything_does_not_count():
    note = Note()
    hottest = Hottest(note)
    hottest.add([], 100.0)
    hottest.add([*appends(a=10), ChannelAppend("*", "group", 1, bytes(5000), b"")], 100.0 + WINDOW_S)
    assert note.read() == Hot("a", 5)


@given(st.text(max_size=400), st.integers(0, 10**12))
def test_any_name_can_be_noted(channel, rate):
    note = Note()
    note.write(Hot(channel, rate))
    told = note.read()
    assert told is not None
    assert told.bytes_per_s == rate
    assert channel.startswith(told.channel.rstrip("\ufffd")) or len(channel.encode()) > 200
