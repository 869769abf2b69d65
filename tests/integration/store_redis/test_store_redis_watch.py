"""Redis says what has changed since it was read: everything that has, or that it cannot be relied upon."""

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
import redis

from channelindex import AsyncChangesReader, ChangesReader, open_async_index
from channelindex.errors import StoreUnavailable
from channelindex.reading.at_rest import ChannelsAtRest
from channelindex.redis.link import ServerLink
from channelindex.stores import open_reader
from channelindex.stores.base import ChannelWatch, IndexReader
from channelindex.stores.redis.keys import Keys
from channelindex.stores.redis.reader import RedisReader
from channelindex.stores.redis.store_link import open_link
from channelindex.stores.redis.watch import begin_watch
from devbucket.embedded_redis import EmbeddedRedis
from tests.support.indexing import Row, SmallIndex
from tests.support.node import until
from tests.support.stores import settings_of

CHANNELS = [f"c{number}" for number in range(40)]
TABLE_SIZE = "tracking-table-max-keys"
"""How many keys Redis remembers for all who watch; 1,000,000 where nobody says otherwise."""


@pytest.fixture
def index(redis_url: str) -> Iterator[SmallIndex]:
    with closing(SmallIndex(redis_url, block_bytes=300)) as made:
        yield made


class Changing:
    """Writes a document after the other, each stable at once."""

    def __init__(self, index: SmallIndex) -> None:
        self.index = index
        self.epoch = index.begin()
        self.seqno = 0

    def write(self, *channels: str) -> None:
        self.seqno += 1
        self.index.write(self.epoch, [Row(channel, 0, self.seqno, f"doc{self.seqno}") for channel in channels])
        self.advance()

    def advance(self) -> None:
        self.index.advance(self.epoch, {0: self.seqno})

    def roll_back(self) -> None:
        self.seqno = max(0, self.seqno - 2)
        self.epoch = self.index.begin(rollback={0: self.seqno})
        self.advance()


@pytest.fixture
def changing(index: SmallIndex) -> Changing:
    return Changing(index)


@pytest.fixture
def watch(index: SmallIndex, changing: Changing) -> Iterator[ChannelWatch]:
    changing.write(*CHANNELS)
    begun = index.reader.watch()
    assert begun is not None
    with closing(begun):
        yield begun


def told(watch: ChannelWatch, index: SmallIndex) -> set[str] | None:
    changed = watch.changed(index.reader.stable_counter())
    return None if changed is None else set(changed)


def test_what_has_changed_since_it_was_read_is_reported_once_and_nothing_else(
    watch: ChannelWatch, index: SmallIndex, changing: Changing
) -> None:
    assert told(watch, index) == set()
    watch.reader.channel_states([*CHANNELS, "new"])
    for _ in range(30):  # in its block, by moving its clock, into the next blocks
        changing.write("c7", "new", "unread")
        assert told(watch, index) == {"c7", "new"}
        changing.write("c7")
        assert told(watch, index) in (set(), {"c7"}), "block and directory are told apart"
        assert told(watch, index) == set(), "it was told before, and not read since"
        watch.reader.channel_states(["c7", "new"])
    (state,) = watch.reader.channel_states(["c7"])
    assert state is not None
    assert any(group.directory.number for group in state.groups.values()), "the blocks were full"
    changing.write(*CHANNELS)
    assert told(watch, index) == set(CHANNELS)


def test_what_redis_has_no_room_to_remember_is_reported_as_changed(
    watch: ChannelWatch, index: SmallIndex, client: redis.Redis
) -> None:
    watch.reader.channel_states(CHANNELS)
    client.config_set(TABLE_SIZE, 4)
    try:
        found: set[str] = set()

        def all_are_told() -> bool:
            found.update(told(watch, index) or ())
            return len(found) >= len(CHANNELS) - 4

        until(all_are_told, "Redis to forget most of the keys")
    finally:
        client.config_set(TABLE_SIZE, 1_000_000)


@pytest.mark.parametrize("kind", ["pubsub", "normal"])
def test_a_watch_has_ended_with_either_of_its_connections(
    watch: ChannelWatch, index: SmallIndex, client: redis.Redis, kind: str
) -> None:
    counter = index.reader.stable_counter()
    assert watch.is_whole
    client.client_kill_filter(_type=kind, skipme=True)
    with pytest.raises(StoreUnavailable):
        watch.changed(counter)
    assert not watch.is_whole


def test_a_store_that_is_emptied_or_another_one_than_was_asked_ends_a_watch(
    watch: ChannelWatch, index: SmallIndex, client: redis.Redis
) -> None:
    watch.reader.channel_states(CHANNELS)
    with pytest.raises(StoreUnavailable, match="another server"):
        watch.changed(index.reader.stable_counter() + 1)
    assert not watch.is_whole
    again = index.reader.watch()
    assert again is not None
    with closing(again):
        again.reader.channel_states(CHANNELS)
        client.flushdb()
        with pytest.raises(StoreUnavailable, match="emptied"):
            again.changed(0)


def test_a_store_that_is_behind_what_was_watched_ends_a_watch(
    watch: ChannelWatch, index: SmallIndex, changing: Changing
) -> None:
    """Its address leads to one that has lost its newest writes, and the old one still answers who is connected."""
    at_first = index.reader.stable_counter()
    changing.write("c1")
    assert told(watch, index) is not None
    with pytest.raises(StoreUnavailable, match="another server"):
        watch.changed(at_first)
    assert not watch.is_whole


def test_a_watch_that_is_notified_by_another_server_is_not_believed(
    index: SmallIndex, changing: Changing, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both sides of a balancer, say: the number of the one's connection is that of somebody else at the other."""
    with (
        redis.Redis.from_url(redis_url, single_connection_client=True) as stranger,
        EmbeddedRedis() as elsewhere,
        redis.Redis.from_url(elsewhere.url) as climbing,
    ):
        while climbing.client_id() < stranger.client_id() - 1:
            climbing.connection_pool.disconnect()
        messages = open_link(elsewhere.url, StoreUnavailable, reconnects=False)
        assert messages.execute("CLIENT", "ID") == stranger.client_id()
        link = open_link(redis_url, StoreUnavailable, reconnects=False)
        assert isinstance(link, ServerLink)
        assert isinstance(messages, ServerLink)
        keys = Keys(index.name)
        watch = begin_watch(RedisReader(redis_url, index.name, link), link, messages, keys)
        assert watch is not None
        with closing(watch):
            assert told(watch, index) == set()
            changing.write("c1")
            assert told(watch, index) is None
            monkeypatch.setattr(index.reader, "watch", lambda: watch)
            rest = ChannelsAtRest(index.reader)
            assert rest.begin() is watch.reader
            assert rest.awake(CHANNELS, index.reader.stable_counter()) == CHANNELS
            assert watch.is_whole, "the look that finds it out reads one server to its end"
            assert rest.begin() is index.reader


@pytest.fixture
def refused_url(redis_url: str, client: redis.Redis) -> Iterator[str]:
    """Of a user who may do anything but watch."""
    client.execute_command("ACL", "SETUSER", "unwatching", "on", ">x", "allkeys", "allchannels", "+@all", "-client")
    yield redis_url.replace("unix://", "unix://unwatching:x@").replace("redis://", "redis://unwatching:x@")
    client.execute_command("ACL", "DELUSER", "unwatching")


def test_who_may_not_watch_compares(index: SmallIndex, changing: Changing, refused_url: str) -> None:
    changing.write(*CHANNELS)
    with closing(open_reader(settings_of(refused_url, index.name))) as reader:
        assert reader.watch() is None
        rest, snapshots = ChannelsAtRest(reader), ChangesReader(reader)
        assert _awake(rest, reader, snapshots) == CHANNELS
        assert _awake(rest, reader, snapshots) == []
        changing.write("c3")
        assert _awake(rest, reader, snapshots) == ["c3"]


def test_who_may_not_ping_compares(index: SmallIndex, refused_url: str, client: redis.Redis) -> None:
    client.execute_command("ACL", "SETUSER", "unwatching", "+client", "-ping")
    with closing(open_reader(settings_of(refused_url, index.name))) as reader:
        assert reader.watch() is None


def _awake(rest: ChannelsAtRest, reader: IndexReader, snapshots: ChangesReader) -> list[str]:
    counter = reader.stable_counter()
    store = rest.begin()
    snapshot = snapshots.snapshot()
    found = rest.awake(CHANNELS, counter)
    rest.note(found, store.channel_states(found), snapshot)
    return found


def test_a_look_costs_what_has_changed_and_not_what_is_followed(
    index: SmallIndex, changing: Changing, client: redis.Redis
) -> None:
    changing.write(*CHANNELS)
    rest, snapshots = ChannelsAtRest(index.reader), ChangesReader(index.reader)
    with closing(rest):
        assert _awake(rest, index.reader, snapshots) == CHANNELS
        changing.write("c3")
        before = client.info("commandstats")
        assert _awake(rest, index.reader, snapshots) == ["c3"]
        after = client.info("commandstats")
    n_commands = {
        name: each["calls"] - before.get(name, {"calls": 0})["calls"]
        for name, each in after.items()
        if "info" not in name
    }
    assert sum(n_commands.values()) <= 10, n_commands


Trouble = Callable[[redis.Redis], object]
TROUBLES: dict[str, Trouble] = {
    "no trouble": lambda client: None,
    "connections lost": lambda client: client.client_kill_filter(_type="pubsub", skipme=True),
    "keys forgotten": lambda client: client.config_set(TABLE_SIZE, 5),
}


@pytest.mark.parametrize(
    ("watches", "trouble"), [*[(True, trouble) for trouble in TROUBLES], (False, "no trouble")], ids=str
)
def test_followers_of_many_channels_end_with_what_is_there(
    index: SmallIndex,
    changing: Changing,
    client: redis.Redis,
    redis_url: str,
    refused_url: str,
    watches: bool,
    trouble: str,
) -> None:
    """Through writes to some of them at a time, rollbacks, and what ends a watch or fills its server."""
    chosen = random.Random(7)
    documents: dict[str, dict[str, str]] = {channel: {} for channel in CHANNELS}

    async def follow(reader: AsyncChangesReader, channel: str) -> None:
        async for page in reader.follow([channel]):
            for entry in page.entries:
                documents[channel].pop(entry.id, None)
                if not entry.removed:
                    documents[channel][entry.id] = entry.rev

    def there() -> dict[str, dict[str, str]]:
        plain = ChangesReader(index.reader)
        return {channel: {entry.id: entry.rev for entry in plain.changes([channel]).entries} for channel in CHANNELS}

    async def settled() -> None:
        async with asyncio.timeout(60):
            while documents != await asyncio.to_thread(there):  # noqa: ASYNC110 it has no event
                await asyncio.sleep(0.02)

    async def test() -> None:
        async with open_async_index(redis_url if watches else refused_url, index.name) as reader:
            tasks = [asyncio.create_task(follow(reader, channel)) for channel in CHANNELS]
            for step in range(45):
                changing.write(*chosen.sample(CHANNELS, 3))
                if step % 10 == 9:
                    TROUBLES[trouble](client)
                if step % 15 == 14:
                    changing.roll_back()
                if step % 5 == 4:
                    await settled()
                else:
                    await asyncio.sleep(chosen.choice([0, 0.01]))
            await settled()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    try:
        asyncio.run(test())
    finally:
        client.config_set(TABLE_SIZE, 1_000_000)
