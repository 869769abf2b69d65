"""Which channels a compactor finds at rest: those that have as many bytes as when it looked before."""

from channelindex.compaction.rest import Rest
from channelindex.stores.base import NEVER_COMPACTED, Directory
from channelindex.stores.compacting import ChannelSizes, GroupSize


def _sizes(**bytes_by_channel: int) -> dict[str, ChannelSizes]:
    directory = Directory(0, 1, 0, 0)
    return {
        channel: ChannelSizes(NEVER_COMPACTED, {"g": GroupSize(directory, n_bytes)})
        for channel, n_bytes in bytes_by_channel.items()
    }


def test_a_channel_rests_that_did_not_change_since_the_look_before():
    rest, found = Rest(), []
    for sizes in (_sizes(a=10, b=10), _sizes(a=10, b=11), _sizes(a=12, b=11), _sizes(a=12), _sizes(a=12, b=11)):
        rest.look()
        found.append(list(rest.resting(sizes)))
    assert found == [[], ["a"], ["b"], ["a"], ["a"]]
