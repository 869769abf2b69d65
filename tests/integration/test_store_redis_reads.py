"""What a reader of one channel asks of Redis, counted; and what an entry costs there."""

from contextlib import closing

import pytest
import redis

from benchmarks.memory import measure
from channelindex.hashing import group_of
from channelindex.reading.reader import ChangesReader
from channelindex.stores.redis.keys import Keys
from tests.support.indexing import Row, SmallIndex

GROUP = group_of((0, 1), 2)


def _keys_read(client: redis.Redis, act) -> list[str]:
    """The channels' keys that *act* reads, in order."""
    seen: list[str] = []
    with client.monitor() as monitor:
        act()
        client.echo("enough")
        while (command := monitor.next_command()["command"]) != "ECHO enough":
            parts = command.split(" ")
            if "{i}" not in command and len(parts) > 1 and parts[1].startswith("ci:"):
                seen.append(parts[1])
    return seen


def test_changes_of_one_channel_read_its_own_blocks_newer_than_since_and_nothing_else(redis_url):
    with closing(SmallIndex(redis_url, block_bytes=200)) as index, redis.Redis.from_url(redis_url) as client:
        epoch = index.begin()
        for seqno in range(1, 101):
            index.write(epoch, [Row(channel, 0, seqno, f"doc{seqno}") for channel in ("a", "b", "c")])
        index.advance(epoch, {0: 80})
        reader = ChangesReader(index.reader)
        since = reader.changes(["a"]).since
        index.advance(epoch, {0: 100})
        (state,) = index.reader.channel_states(["a"])
        assert state is not None
        active = state.active_by_group[GROUP]
        keys = Keys(index.meta.index_uuid.removeprefix("uuid-"))
        read = _keys_read(client, lambda: reader.changes(["a"], since))
        blocks = [key for key in read if ":b:" in key]
        assert read[:2] == [keys.channel("a"), keys.block("a", GROUP, active)]  # the directory, the tail
        assert blocks[1:] == [keys.block("a", GROUP, number) for number in range(active, active - len(blocks) + 1, -1)]
        assert 1 + len(blocks) == len(read)
        assert len(blocks) - 1 == reader.changes(["a"], since).stats.n_blocks
        assert 5 <= len(blocks) <= 8  # the tail; 20 entries, 3 to 4 in each; and the block that since lies in
        assert active >= 19
        now = reader.changes(["a"], since).since
        assert _keys_read(client, lambda: reader.changes(["a"], now)) == read[:2]


@pytest.mark.parametrize("revs", ["packed", "plain"])
def test_entry_in_a_small_channel_costs_what_is_documented(revs):
    found = measure(20_000, 2_000, 65536, revs)
    assert found.bytes_per_entry < (230 if revs == "packed" else 260)
    assert found.blocks_read <= 4
