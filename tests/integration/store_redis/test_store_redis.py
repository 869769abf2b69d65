"""What only the Redis store does: which commands, in what order, under which keys, at which URL."""

import time

import pytest
import redis

from channelindex.blocks import slot_of
from channelindex.errors import ConfigInvalid, IndexCorrupt, IndexMissing, StaleEpoch, Transient
from channelindex.settings import IndexSettings
from channelindex.stores import open_compaction, open_owner, open_reader, open_writer
from channelindex.stores.base import Compacted, Directory
from channelindex.stores.compacting import ChannelSizes, GroupSize
from channelindex.stores.redis.keys import Keys
from tests.support.stores import GROUP, META, all_entries, append, checkpoints, entry

OTHER_GROUP = "ffeeddcc99887766"
KEYS = Keys("test")


def _commands_of_scripts(client: redis.Redis, act) -> list[str]:
    """What the scripts that *act* runs do, and what is appended without one, as "COMMAND key"."""
    seen: list[str] = []
    with client.monitor() as monitor:
        act()
        client.echo("enough")
        while True:
            command = monitor.next_command()
            if command["command"] == "ECHO enough":
                return seen
            if command["client_type"] == "lua" or command["command"].startswith("APPEND "):
                seen.append(" ".join(command["command"].split(" ")[:2]))


def test_a_batch_is_one_append_for_each_channel_and_group(backend, client):
    """Block, clock and counter move with it; principals are counted after all of them."""
    writer = backend.writer()
    batch = [append("A", 1, entry(0, 1)), append("A", 2, entry(9, 1), group=OTHER_GROUP), append("B", 1, entry(0, 1))]
    writer.write(batch)
    seen = _commands_of_scripts(client, lambda: writer.write(batch, ["_sync:user:u"]))
    assert seen[-2:] == [f"HINCRBY {KEYS.principals}"] * 2
    assert sorted(seen[:-2]) == sorted(
        [
            f"APPEND {KEYS.block('A', GROUP, 0)}",
            f"APPEND {KEYS.block('A', OTHER_GROUP, 0)}",
            f"APPEND {KEYS.block('B', GROUP, 0)}",
        ]
    )


def test_a_new_block_is_there_before_the_directory_names_it(backend, client):
    seen = _commands_of_scripts(client, lambda: backend.writer().write([append("A", 1, entry(0, 1))]))
    assert seen == [
        f"HLEN {KEYS.channel('A')}",
        f"SETNX {KEYS.block('A', GROUP, 0)}",
        f"HSET {KEYS.channel('A')}",
        f"HSET {KEYS.names(slot_of('A'))}",
    ]


def test_names_are_noted_once_for_all_channels_of_a_slot_that_begin(backend, client):
    first, second, third = _channels_of_one_slot(3)
    backend.writer().write([append(first, 2, entry(0, 1))])
    batch = [
        append(first, 1, entry(0, 2)),  # refused
        append(first, 1, entry(9, 1), group=OTHER_GROUP),
        append(second, 1, entry(0, 3)),
        append(second, 1, entry(9, 2), group=OTHER_GROUP),
        append(third, 1, entry(0, 4)),
    ]
    names = KEYS.names(slot_of(first))
    client.config_resetstat()
    assert backend.writer().write(batch) == {1}
    assert set(client.hkeys(names)) == {name.encode() for name in (first, second, third)}
    directories = 4
    assert client.info("commandstats")["cmdstat_hset"]["calls"] == directories + 1


def test_a_name_that_was_lost_is_noted_again_when_another_group_writes(backend, client):
    names = KEYS.names(slot_of("A"))
    writer = backend.writer()
    writer.write([append("A", 1, entry(0, 1))])
    client.delete(names)
    writer.write([append("A", 2, entry(9, 1), group=OTHER_GROUP)])
    assert client.hkeys(names) == [b"A"]


def test_channels_that_began_before_one_of_the_same_call_failed_have_names(backend, client):
    began, broken, other = _channels_of_one_slot(3)
    client.lpush(KEYS.channel(broken), "foreign")
    with pytest.raises(IndexCorrupt, match=f"c:{broken}"):
        backend.writer().write([append(name, 1, entry(0, 1)) for name in (began, broken, other)])
    assert client.hkeys(KEYS.names(slot_of(began))) == [began.encode()]
    assert [each.seqno for _, each in all_entries(backend.reader(), began)] == [1]


def _channels_of_one_slot(count: int) -> list[str]:
    names = (f"channel-{number}" for number in range(10_000))
    return [name for name in names if slot_of(name) == 5][:count]


def test_stable_clock_moves_before_its_counter_and_the_message(backend, client):
    owner = backend.owner()
    owner.begin(0, 1, "n1")
    seen = _commands_of_scripts(client, lambda: owner.advance(1, checkpoints({0: 1})))
    record = KEYS.partition(0)
    assert seen == [
        f"EXISTS {KEYS.meta}",
        f"EXISTS {KEYS.view}",
        f"HMGET {record}",
        f"HSET {record}",
        f"SETRANGE {KEYS.view}",
        "TIME",
        f"GET {KEYS.stable}",
        f"SET {KEYS.stable}",
        f"PUBLISH {KEYS.stable}",
    ]


def test_batch_of_known_channels_is_an_append_for_each_and_no_script(backend, client):
    writer = backend.writer()
    batch = [append(f"channel-{number}", 1, entry(0, 1)) for number in range(300)]
    writer.write(batch)
    client.config_resetstat()
    writer.write(batch)
    calls = {name: stats["calls"] for name, stats in client.info("commandstats").items()}
    assert calls["cmdstat_append"] == 300
    assert not calls.keys() & {"cmdstat_eval", "cmdstat_evalsha"}


def test_rotated_block_keeps_no_room_to_grow(backend, client):
    writer = backend.writer(block_bytes=40_000)
    for seqno in range(1, 1200):
        writer.write([append("A", 1, entry(0, seqno))])
    sizes = [client.memory_usage(KEYS.block("A", GROUP, number)) for number in (0, 1)]
    assert sizes[0] < 1.1 * client.strlen(KEYS.block("A", GROUP, 0))


def test_room_that_appends_reserved_is_given_back_at_a_look_and_lifetimes_stay(backend, client):
    writer = backend.writer()
    for seqno in range(1, 7):
        writer.write([append(channel, 1, entry(0, seqno)) for channel in ("A", "B")])
    keys = [KEYS.block(channel, GROUP, 0) for channel in ("A", "B")]
    client.pexpire(keys[1], 3_600_000)
    before = [(client.get(key), client.memory_usage(key)) for key in keys]
    compaction = backend.compaction()
    sizes = dict(zip(("A", "B"), compaction.sizes(["A", "B"]), strict=True))
    compaction.give_back(sizes)
    assert [client.get(key) for key in keys] == [block for block, _ in before]
    assert all(client.memory_usage(key) < used - 100 for key, (_, used) in zip(keys, before, strict=True))
    assert client.pttl(keys[0]) == -1
    assert client.pttl(keys[1]) > 3_000_000
    client.config_resetstat()
    compaction.give_back(sizes)
    client.delete(*keys)
    compaction.give_back(sizes)
    assert "cmdstat_set" not in client.info("commandstats"), "nothing is given back twice, nor made of nothing"


def test_a_server_that_does_not_tell_what_it_uses_keeps_its_room(backend, client):
    writer = backend.writer()
    for seqno in (1, 2):
        writer.write([append("A", 1, entry(0, seqno))])
    used = client.memory_usage(KEYS.block("A", GROUP, 0))
    url = backend.url.replace("://", "://least:word@", 1)
    client.acl_setuser(
        "least", enabled=True, passwords=["+word"], keys=["*"], categories=["+@all"], commands=["-memory"]
    )
    try:
        compaction = open_compaction(IndexSettings("test", url))
        (sizes,) = compaction.sizes(["A"])
        assert sizes is not None
        compaction.give_back({"A": sizes})
        compaction.close()
    finally:
        client.acl_deluser("least")
    assert client.memory_usage(KEYS.block("A", GROUP, 0)) == used


def _sizes(*blocks: int) -> dict[str, ChannelSizes]:
    """Channels "0", "1" ... of one group each, whose active blocks have so many bytes."""
    return {
        str(place): ChannelSizes(Compacted(), {GROUP: GroupSize(Directory(0, 1), n_bytes)})
        for place, n_bytes in enumerate(blocks)
    }


def test_a_block_whose_time_is_over_is_not_made_anew(backend, client):
    """A server counts its use until somebody asks for it, or it comes to it itself."""
    compaction = open_compaction(IndexSettings("test", backend.url))
    compaction.give_back(_sizes(0))
    block = KEYS.block("0", GROUP, 0)
    for _ in range(5):
        client.set(block, b"H" * 3000)
        client.pexpire(block, 1)
        time.sleep(0.003)
        compaction.give_back(_sizes(3000))
        assert not client.exists(block)
    compaction.close()


def test_a_full_server_keeps_its_room_and_ends_no_look(backend, client):
    compaction = open_compaction(IndexSettings("test", backend.url))
    block = KEYS.block("0", GROUP, 0)
    client.set(block, b"H" * 3000)
    client.append(block, b"e" * 3000)
    used = client.memory_usage(block)
    client.config_set("maxmemory", 1)
    try:
        compaction.give_back(_sizes(6000))
        assert client.memory_usage(block) == used
    finally:
        client.config_set("maxmemory", 0)
    compaction.give_back(_sizes(6000))
    assert client.memory_usage(block) < used
    compaction.close()


def test_redis_copies_no_more_than_a_megabyte_at_once(backend, client):
    compaction = open_compaction(IndexSettings("test", backend.url))
    compaction.give_back(_sizes(0))
    for blocks, n_calls in (((60_000,) * 40, 3), ((2 << 20,) * 3, 3), ((100,) * 1001, 3)):
        client.config_resetstat()
        compaction.give_back(_sizes(*blocks))
        assert client.info("commandstats")["cmdstat_evalsha"]["calls"] == n_calls
    compaction.close()


def test_scripts_that_redis_forgot_are_loaded_again(backend, client):
    owner = backend.owner()
    owner.begin(0, 1, "n1")
    writer = backend.writer(block_bytes=1)
    for seqno in (1, 2, 3):
        client.script_flush()
        writer.write([append("A", 1, entry(0, seqno))], ["_sync:user:u"])
        client.script_flush()
        owner.advance(1, checkpoints({0: seqno}))
    assert [each.seqno for _, each in all_entries(backend.reader(), "A")] == [1, 2, 3]


def test_begin_that_somebody_overtook_is_judged_anew(backend, monkeypatch):
    ours, theirs = backend.owner(), backend.owner()
    replace = ours._replace

    def replace_too_late(*arguments):
        monkeypatch.undo()
        theirs.begin(0, 2, "n2")
        return replace(*arguments)

    monkeypatch.setattr(ours, "_replace", replace_too_late)
    with pytest.raises(StaleEpoch):
        ours.begin(0, 1, "n1")
    monkeypatch.setattr(ours, "_replace", set)
    with pytest.raises(Transient, match="20 times"):
        ours.begin(0, 3, "n1")
    assert backend.reader().partition_records()[0].epoch == 2


def test_channel_that_scan_returns_twice_is_listed_once(backend, monkeypatch):
    reader = backend.reader()
    key = KEYS.channel("A").encode()
    replies = iter([[b"7", [key, key]], [b"0", [key, b"ci:test:{5}:b:g:0:x}:c:y"]]])
    monkeypatch.setattr(reader._link, "execute", lambda *_: next(replies))
    assert list(reader.channels()) == ["A"]


def test_all_keys_of_an_index_begin_with_its_prefix(backend, client):
    owner, writer = backend.owner(), backend.writer(block_bytes=1)
    owner.begin(0, epoch := owner.next_epoch(), "n1")
    for seqno in (1, 2):
        writer.write([append("A", 1, entry(0, seqno))], ["_sync:user:u"])
    owner.advance(epoch, checkpoints({0: 2}))
    assert all(key.startswith(b"ci:test:{") for key in client.scan_iter())


@pytest.mark.parametrize("url", ["http://localhost", "localhost:6379", ""])
def test_unknown_scheme_is_a_configuration_error(url):
    for opener in (open_owner, open_reader, open_writer):
        with pytest.raises(ConfigInvalid, match=r"index\.store"):
            opener(IndexSettings("test", url))


@pytest.mark.parametrize("url", ["redis://localhost:port/0", "redis://localhost/0?db=x"])
def test_malformed_url_is_a_configuration_error(url):
    with pytest.raises(ConfigInvalid, match=r"index\.store"):
        open_reader(IndexSettings("test", url))


def test_memory_index_is_shared_by_url_and_name():
    open_owner(IndexSettings("a", "memory://shared")).create_or_check(META)
    assert open_reader(IndexSettings("a", "memory://shared")).meta() == META
    with pytest.raises(IndexMissing):
        open_reader(IndexSettings("b", "memory://shared")).meta()
