"""What a reader of one channel asks of Redis, counted; and what an entry costs there."""

from contextlib import closing

import pytest
import redis

from benchmarks.memory import measure
from channelindex.hashing import group_of
from channelindex.reading.changes_reader import ChangesReader
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


def _commands(client: redis.Redis, act) -> list[str]:
    """The names of the commands that *act* sends to Redis, in order; those of connecting left out."""
    seen: list[str] = []
    with client.monitor() as monitor:
        act()
        client.echo("enough")
        while (command := monitor.next_command()["command"]) != "ECHO enough":
            seen.append(command.split(" ")[0])
    return [name for name in seen if name not in ("HELLO", "CLIENT")]


def test_a_poll_costs_the_same_few_commands_however_many_partitions_there_are(redis_url):
    index = SmallIndex(redis_url, n_vbuckets=1024, n_partitions=64)
    with closing(index), redis.Redis.from_url(redis_url) as client:
        epoch = index.begin(range(64))
        index.write(epoch, [Row("a", vb, 1, f"doc{vb}") for vb in range(3)], range(64))
        index.advance(epoch, dict.fromkeys(range(1024), 1))
        reader = ChangesReader(index.reader)
        since = reader.changes(["a"]).since
        look = ["GET", "GET"]  # the meta record, the stable view
        channel = ["HGETALL", "GETRANGE"]  # the directory, the tail
        assert _commands(client, lambda: reader.changes(["a"], since)) == look + channel
        index.advance(epoch, {7: 2})
        assert _commands(client, lambda: reader.changes(["a"], since)) == look + channel
        index.begin([5, 6])
        assert _commands(client, lambda: reader.changes(["a"], since)) == [*look, "GET", "HMGET", "HMGET", *channel]
        assert _commands(client, lambda: reader.changes(["a"], since)) == look + channel


@pytest.mark.parametrize("revs", ["packed", "plain"])
def test_entry_in_a_small_channel_costs_what_is_documented(revs):
    found = measure(20_000, 2_000, 65536, revs)
    assert found.bytes_per_entry < (230 if revs == "packed" else 260)
    assert found.blocks_read <= 4
