"""What only the Redis store can do: the order of its commands, and what each way of failing means to its caller."""

import re
import socket
import threading
from collections.abc import Iterator

import msgspec
import pytest
import redis

from channelindex import kernel
from channelindex.blocks import ENTRIES, HEADER, pack_entry, pack_frame, pack_pairs
from channelindex.epochs import new_record
from channelindex.errors import (
    AuthenticationFailed,
    ConfigInvalid,
    IndexCorrupt,
    IndexMissing,
    InvariantBroken,
    OutcomeUnknown,
    OwnershipLost,
    RemovalsForgotten,
    StaleEpoch,
    StoreUnavailable,
    Transient,
)
from channelindex.hashing import slot_of
from channelindex.reading.reader import ChangesReader
from channelindex.redis.link import ServerLink
from channelindex.settings import IndexSettings
from channelindex.stores import open_owner, open_reader, open_writer
from channelindex.stores.base import BlockRef, Directory, Mended, Quarantined
from channelindex.stores.compacting import GroupChange, Output, Switch
from channelindex.stores.records import view_of
from channelindex.stores.redis.keys import Keys
from channelindex.stores.redis.store_link import open_link
from tests.support.node import until
from tests.support.stores import GROUP, META, Backend, all_entries, append, checkpoints, entry

OTHER_GROUP = "ffeeddcc99887766"
KEYS = Keys("test")


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as opened:
        yield opened


@pytest.fixture
def backend(redis_url: str) -> Iterator[Backend]:
    opened = Backend(redis_url)
    opened.owner().create_or_check(META)
    yield opened
    opened.close()


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
        f"HMGET {KEYS.channel('A')}",
        f"SET {KEYS.block('A', GROUP, 0)}",
        f"HSET {KEYS.names(slot_of('A'))}",
        f"HSET {KEYS.channel('A')}",
    ]


def test_stable_clock_moves_before_its_counter_and_the_message(backend, client):
    owner = backend.owner()
    owner.begin(0, 1, "n1")
    seen = _commands_of_scripts(client, lambda: owner.advance(1, checkpoints({0: 1})))
    record = KEYS.partition(0)
    assert seen == [
        f"EXISTS {KEYS.meta}",
        f"EXISTS {KEYS.view}",
        f"HGET {record}",
        f"HGET {record}",
        f"HSET {record}",
        f"HINCRBY {record}",
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


def test_an_append_to_a_block_that_was_lost_is_taken_back(backend, client):
    block, writer = KEYS.block("A", GROUP, 0), backend.writer()
    for _ in range(2):
        writer.write([append("A", 1, entry(0, 1)), append("B", 1, entry(0, 1))])
    client.delete(block)
    with pytest.raises(IndexCorrupt, match="0:A is gone"):
        writer.write([append("A", 1, entry(0, 2)), append("A", 1, entry(0, 3)), append("B", 1, entry(0, 2))])
    assert client.exists(block) == 0


def test_nobody_appends_to_a_block_without_header_whose_writer_died_before_it_took_its_append_back(backend, client):
    backend.writer().write([append("A", 1, entry(0, 1))])
    block = KEYS.block("A", GROUP, 0)
    client.set(block, frame := pack_frame(ENTRIES, 1, b"x"))
    with pytest.raises(IndexCorrupt, match="not both there"):
        backend.writer().write([append("A", 1, entry(0, 2))])
    assert client.get(block) == frame
    (state,), found = backend.reader().channel_states(["A"]), backend.reader().blocks([BlockRef("A", GROUP, 0)])
    assert (found, state.groups[GROUP].tail) == ([None], None), "to readers it is not there"


def test_rotated_block_keeps_no_room_to_grow(backend, client):
    writer = backend.writer(block_bytes=40_000)
    for seqno in range(1, 1200):
        writer.write([append("A", 1, entry(0, seqno))])
    sizes = [client.memory_usage(KEYS.block("A", GROUP, number)) for number in (0, 1)]
    assert sizes[0] < 1.1 * client.strlen(KEYS.block("A", GROUP, 0))


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


def _cut_all_connections(client: redis.Redis) -> None:
    client.client_kill_filter(_type="normal", skipme=True)


def test_closed_idle_connection_is_an_error_once_to_owner_and_writer_and_none_to_readers(backend, client):
    owner, writer, reader = backend.owner(), backend.writer(), backend.reader()
    owner.next_epoch()
    batch = [append("A", 1, entry(0, 1))]
    writer.write(batch)
    reader.stable_counter()
    _cut_all_connections(client)
    with pytest.raises(StoreUnavailable):
        owner.next_epoch()
    with pytest.raises(StoreUnavailable):
        writer.write(batch)
    assert owner.next_epoch() > 0
    writer.write(batch)
    assert len(all_entries(reader, "A")) == 2


def test_writer_whose_redis_forgot_a_rotation_asks_again(backend, client):
    """A blind append to a block that the directory does not know would be lost to readers."""
    writer = backend.writer(block_bytes=1)
    writer.write([append("A", 1, entry(0, 1))])
    forgotten = client.dump(KEYS.channel("A"))
    writer.write([append("A", 1, entry(0, 2))])
    writer._block_bytes = 10_000
    client.delete(KEYS.block("A", GROUP, 1))
    client.restore(KEYS.channel("A"), 0, forgotten, replace=True)
    _cut_all_connections(client)
    batch = [append("A", 1, entry(0, 2))]
    with pytest.raises(StoreUnavailable):
        writer.write(batch)
    writer.write(batch)
    assert [each.seqno for _, each in all_entries(backend.reader(), "A")] == [1, 2]


@pytest.mark.parametrize("kernel_use", ["off", "auto"])
def test_block_that_went_and_a_former_owner_brought_back_is_gone_for_the_present_one(
    backend, client, kernel_use, monkeypatch
):
    """It appended first, and has not taken that back yet, or was killed: what joins it would be lost to readers."""
    monkeypatch.setattr(kernel, "_mode", kernel_use)
    writer, store = backend.writer(), backend.compaction()
    writer.write([append("A", 1, entry(0, 1)), append("B", 1, entry(0, 1))])
    (sizes,) = store.sizes(["A"])
    directory, active_bytes = sizes.groups[GROUP]
    taken = GroupChange(GROUP, directory, removed=True, active_bytes=active_bytes)
    assert store.switch(Switch("A", 0, [taken], None, 1, 1, b"", 60))
    client.append(KEYS.block("A", GROUP, 0), pack_frame(ENTRIES, 1, pack_entry(entry(0, 9))))
    client.append(KEYS.block("B", GROUP, 0), pack_frame(ENTRIES, 1, pack_entry(entry(0, 9))))
    writer.write([append("B", 1, entry(0, 2)), append("A", 1, entry(0, 2))])
    assert [each.seqno for _, each in all_entries(backend.reader(), "A")] == [2]
    assert client.exists(KEYS.block("A", GROUP, 0)) == 0
    assert {1, 2, 9} == {each.seqno for _, each in all_entries(backend.reader(), "B")}, "that block was not lost"


@pytest.mark.parametrize("quarantines_first", [False, True])
def test_stable_clock_does_not_move_on_a_redis_that_may_have_forgotten(backend, client, quarantines_first):
    owner = backend.owner()
    owner.begin(0, 1, "n1")
    owner.advance(1, checkpoints({0: 1}))
    client.replicaof("127.0.0.1", 1)  # nobody listens there
    client.replicaof("NO", "ONE")  # its replication id is another from here on, as after a failover
    _cut_all_connections(client)
    with pytest.raises(StoreUnavailable):
        owner.advance(1, checkpoints({0: 2}))
    if quarantines_first:
        owner.quarantine([Quarantined(0, 1, b"k", "why", 1.0)])
    for _ in range(2):
        with pytest.raises(OwnershipLost, match="failed over"):
            owner.advance(1, checkpoints({0: 2}))
    assert backend.reader().partition_records()[0].stable[0] == 1
    anew = backend.owner()
    anew.begin(0, 2, "n1")
    anew.advance(2, checkpoints({0: 2}))
    assert backend.reader().partition_records()[0].stable[0] == 2


def test_stable_clock_moves_on_after_the_connection_alone_was_lost(backend, client):
    owner = backend.owner()
    owner.begin(0, 1, "n1")
    _cut_all_connections(client)
    with pytest.raises(StoreUnavailable):
        owner.advance(1, checkpoints({0: 2}))
    owner.advance(1, checkpoints({0: 2}))
    assert backend.reader().partition_records()[0].stable[0] == 2


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


def test_interrupted_request_leaves_no_reply_behind(redis_url, monkeypatch):
    link = open_link(redis_url + "?socket_timeout=30", OutcomeUnknown)
    link.execute("SET", "key", "value")

    def interrupted():
        raise KeyboardInterrupt

    assert isinstance(link, ServerLink)
    with monkeypatch.context() as patch:
        patch.setattr(link._connection, "read_response", interrupted)
        with pytest.raises(KeyboardInterrupt):
            link.execute("BLPOP", "empty list", 0)
    assert link.execute("GET", "key") == b"value"
    link.close()


def test_unreachable_store_is_unavailable(tmp_path):
    url = f"unix://{tmp_path}/nobody.sock"
    for act in _acts(url):
        with pytest.raises(StoreUnavailable, match=r"index\.store.*nobody\.sock") as raised:
            act()
        assert not isinstance(raised.value, OutcomeUnknown)


def _acts(url: str):
    """One call of each half."""
    settings = IndexSettings("test", url)
    owner, writer, reader = open_owner(settings), open_writer(settings), open_reader(settings)
    return (
        owner.next_epoch,
        lambda: writer.write([append("A", 1, entry(0, 1))]),
        reader.meta,
        lambda: reader.wait_stable(0, 1),
    )


class _HangsUp:
    """A server that reads one request and closes the connection without a reply, or never answers."""

    def __init__(self, path, answers: bool) -> None:
        self._answers = answers
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._open: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(connection)
            while request := connection.recv(65536):
                if b"SETINFO" in request:
                    connection.sendall(b"+OK\r\n" * request.count(b"SETINFO"))
                elif self._answers:
                    connection.close()
                    break

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            connection.close()


@pytest.mark.parametrize("closes", [True, False], ids=["closes", "is silent"])
def test_lost_reply_leaves_the_outcome_unknown_to_writers_only(tmp_path, closes):
    server = _HangsUp(tmp_path / "redis.sock", closes)
    url = f"unix://{tmp_path}/redis.sock?socket_timeout={30 if closes else 0.5}"
    expected = (OutcomeUnknown, OutcomeUnknown, StoreUnavailable, StoreUnavailable)
    for act, kind in zip(_acts(url), expected, strict=True):
        with pytest.raises(kind):
            act()
    server.close()


def test_reply_that_comes_too_late_does_not_answer_the_next_request(backend, client):
    link = open_link(backend.url + "?socket_timeout=1", OutcomeUnknown)
    client.set("next", "next")
    with pytest.raises(OutcomeUnknown):
        link.execute("BLPOP", "empty list", 0)
    client.rpush("empty list", "late")
    assert link.execute("GET", "next") == b"next"
    link.close()


def test_wrong_password_is_an_authentication_failure_and_is_not_shown(redis_url):
    url = redis_url.replace("unix://", "unix://nobody:hunter2@")
    for act in _acts(url):
        with pytest.raises(AuthenticationFailed, match=r"index\.store") as raised:
            act()
        assert "hunter2" not in str(raised.value)


def test_missing_rights_are_an_authentication_failure(backend, client):
    client.acl_setuser("reader", enabled=True, passwords=["+secret"], keys=["*"], commands=["+get"])
    url = backend.url.replace("unix://", "unix://reader:secret@")
    with pytest.raises(AuthenticationFailed, match=r"index\.store"):
        open_writer(IndexSettings("test", url)).write([append("A", 1, entry(0, 1))])
    client.acl_deluser("reader")


def test_store_that_is_full_is_unavailable_and_recovers(backend, client):
    writer = backend.writer()
    client.config_set("maxmemory", 1)
    try:
        for channel in ("A", "B"):
            with pytest.raises(StoreUnavailable, match="OOM"):
                writer.write([append(channel, 1, entry(0, 1))])
    finally:
        client.config_set("maxmemory", 0)
    writer.write([append("A", 1, entry(0, 1))])
    assert len(all_entries(backend.reader(), "A")) == 1


def test_read_only_replica_is_unavailable(backend, client):
    client.replicaof("127.0.0.1", 1)
    try:
        with pytest.raises(StoreUnavailable):
            backend.owner().next_epoch()
        with pytest.raises(StoreUnavailable):
            backend.writer().write([append("A", 1, entry(0, 1))])
    finally:
        client.replicaof("NO", "ONE")


@pytest.mark.parametrize(
    ("key", "read"),
    [
        (KEYS.block("A", GROUP, 0), lambda reader: reader.blocks([BlockRef("A", GROUP, 0)])),
        (KEYS.channel("A"), lambda reader: reader.channel_states(["A"])),
    ],
    ids=["block", "channel"],
)
def test_key_of_the_wrong_type_is_named_by_writer_and_reader(backend, client, key, read):
    known = backend.writer()
    known.write([append("A", 1, entry(0, 1))])
    client.delete(key)
    client.lpush(key, "x")
    knows_better = key == KEYS.channel("A")  # who knows the block does not ask the directory
    for writer in (backend.writer(),) if knows_better else (known, backend.writer()):
        with pytest.raises(IndexCorrupt) as raised:
            writer.write([append("A", 1, entry(0, 2))])
        assert key in str(raised.value)
    reader = backend.reader()
    with pytest.raises(IndexCorrupt) as raised:
        read(reader)
    assert key in str(raised.value)


def test_lost_partition_record_is_corruption_and_not_a_beginning(backend, client):
    owner = backend.owner()
    owner.begin(1, 1, "n1")
    client.delete(KEYS.partition(1))
    with pytest.raises(IndexCorrupt, match="p:1"):
        backend.reader().partition_records()
    with pytest.raises(IndexCorrupt, match="p:1"):
        owner.begin(1, 2, "n1")
    with pytest.raises(IndexCorrupt, match=r"p:1.*channelindex repair"):
        owner.advance(1, checkpoints({4: 1}))


def test_lost_stable_view_stops_readers_and_owners_and_is_written_anew(backend, client):
    owner = backend.owner()
    owner.begin(1, 1, "n1")
    owner.advance(1, checkpoints({4: 3, 6: 5}))
    whole = backend.reader().stable_view()
    client.setrange(KEYS.view, 1000, "x")
    with pytest.raises(IndexCorrupt, match=r"view.*channelindex repair"):
        backend.reader().stable_view()
    client.delete(KEYS.view)
    acts = (
        backend.reader().stable_view,
        lambda: owner.begin(1, 2, "n1"),
        lambda: owner.advance(1, checkpoints({4: 4})),
    )
    for act in acts:
        with pytest.raises(IndexCorrupt, match=r"view.*channelindex repair"):
            act()
    assert not client.exists(KEYS.view), "half of it would pass for all"
    assert owner.restore(META) == (META, False, ())
    assert backend.reader().stable_view() == whole
    assert view_of(META, backend.reader().partition_records()) == whole


@pytest.mark.parametrize("damage", ["delete", "garble", "retype", "archive"])
def test_what_was_lost_of_a_partition_record_is_written_anew(backend, client, damage):
    owner = backend.owner()
    owner.begin(1, 1, "n1")
    whole = list(backend.reader().partition_records())
    key = KEYS.partition(1)
    if damage == "archive":
        client.hset(key, "archived", 1)
    else:
        client.hset(key, "ck", "x") if damage == "garble" else client.delete(key)
    if damage == "retype":
        client.set(key, "foreign")
    assert owner.restore(META) == (META, False, (1,))
    found = list(backend.reader().partition_records())
    assert found[1] == new_record(4, 4)
    assert found[:1] + found[2:] == whole[:1] + whole[2:]


def test_lost_meta_record_stops_the_owner_and_is_written_anew_with_its_uuid(backend, client):
    owner = backend.owner()
    owner.begin(0, 1, "n1")
    whole = list(backend.reader().partition_records())
    client.delete(KEYS.meta)
    wanted = msgspec.structs.replace(META, index_uuid="another")
    for act in (lambda: owner.advance(1, checkpoints({0: 1})), lambda: backend.owner().create_or_check(wanted)):
        with pytest.raises(IndexCorrupt, match=r"meta.*channelindex repair"):
            act()
    assert backend.owner().restore(wanted) == (META, True, ())
    owner.advance(1, checkpoints({0: 1}))
    found = list(backend.reader().partition_records())
    assert found[1:] == whole[1:]
    assert found[0].stable[0] == 1


def test_index_that_is_gone_as_a_whole_is_missing_and_not_damaged(backend, client):
    owner = backend.owner()
    owner.begin(0, 1, "n1")
    client.flushall()
    with pytest.raises(IndexMissing):
        owner.advance(1, checkpoints({0: 1}))


@pytest.mark.parametrize("field", ["ck", "hist"])
def test_garbled_partition_record_is_corruption(backend, client, field):
    client.hset(KEYS.partition(0), field, b"x" * 41)
    with pytest.raises(IndexCorrupt, match="p:0"):
        backend.reader().partition_records()


def test_a_block_that_is_gone_stops_every_writer_and_is_not_begun_anew(backend, client):
    """A block without header would hide all before it; the next one that locates it would take it for whole."""
    block = KEYS.block("A", GROUP, 0)
    writer = backend.writer()
    writer.write([append("A", 1, entry(0, 1))])
    client.delete(block)
    for each in (writer, writer, backend.writer()):
        with pytest.raises(IndexCorrupt):
            each.write([append("A", 1, entry(0, 2))])
        assert not client.exists(block)
    with pytest.raises(IndexCorrupt, match="missing"):
        ChangesReader(backend.reader()).changes(["A"])


def test_a_directory_that_is_gone_stops_the_writer_and_its_block_is_kept(backend, client):
    backend.writer().write([append("A", 1, entry(0, 1))])
    block = client.get(KEYS.block("A", GROUP, 0))
    client.delete(KEYS.channel("A"))
    with pytest.raises(IndexCorrupt, match=re.escape(KEYS.channel("A"))):
        backend.writer().write([append("A", 1, entry(0, 2))])
    assert client.get(KEYS.block("A", GROUP, 0)) == block


def test_a_reader_tells_a_channel_that_lost_its_directory_from_one_that_never_was(backend, client):
    backend.writer().write([append("A", 1, entry(0, 1))])
    client.delete(KEYS.channel("A"))
    reader = backend.reader()
    assert reader.channel_states(["never"]) == [None]
    with pytest.raises(IndexCorrupt, match=re.escape(f"{KEYS.channel('A')} is gone")):
        reader.channel_states(["never", "A"])
    backend.owner().mend(["A"])
    assert [state is None for state in reader.channel_states(["never", "A"])] == [True, False]


def test_notes_of_compaction_that_went_with_a_directory_are_missed_and_replaced(backend, client):
    """A late switch of a compactor must not fit, no number of a block be used twice, and old tokens be refused."""
    owner, writer, reader, store = backend.owner(), backend.writer(), backend.reader(), backend.compaction()
    writer.write([append("A", 1, entry(0, 5))])
    owner.begin(0, 1, "n1")
    owner.advance(1, checkpoints({0: 5}))
    since = ChangesReader(reader).changes(["A"]).since
    store.write_blocks("A", "compact-01", 0, [pack_frame(HEADER, 1, b"")])
    (sizes,) = store.sizes(["A"])
    output = Output("compact-01", [17], Directory(0, 1, 0, 17), pack_frame(HEADER, 1, b""))
    store.switch(
        Switch("A", 0, [GroupChange(GROUP, sizes.groups[GROUP].directory, removed=True)], output, 1, 1, b"", 60)
    )
    late = Switch("A", 1, [], None, 1, 1, b"", 60)
    client.delete(KEYS.channel("A"))
    owner.mend(["A"], pack_pairs({0: 9}))
    assert not store.switch(late)
    backend.writer().write([append("A", 1, entry(0, 10))])
    (state,) = reader.channel_states(["A"])
    assert state.groups[GROUP].directory.number == 1
    with pytest.raises(RemovalsForgotten):
        ChangesReader(reader).changes(["A"], since)
    before = state.compacted
    client.hdel(KEYS.channel("A"), "gcompact-01")
    owner.mend(["A"], b"")
    assert reader.channel_states(["A"])[0].compacted == before, "what is there stays"


def test_a_channel_of_which_nothing_is_left_may_begin_again_once_it_was_mended(backend, client):
    backend.writer().write([append("A", 1, entry(0, 1))])
    client.delete(KEYS.channel("A"), KEYS.block("A", GROUP, 0))
    owner, reader = backend.owner(), backend.reader()
    assert owner.mend() == Mended()
    assert reader.channel_states(["A"]) == [None]
    backend.writer().write([append("A", 1, entry(0, 2))])
    assert owner.mend() == Mended()
    assert reader.channel_states(["A"]) != [None]


@pytest.mark.parametrize("value", [b"", b"7", b"0:x:0:0", b"0:0000000000000001:0"])
def test_a_garbled_directory_is_corruption(backend, client, value):
    backend.writer().write([append("A", 1, entry(0, 1))])
    client.hset(KEYS.channel("A"), "g" + GROUP, value)
    with pytest.raises(IndexCorrupt, match="no directory"):
        backend.reader().channel_states(["A"])


def test_a_channel_without_groups_is_corruption(backend, client):
    backend.writer().write([append("A", 1, entry(0, 1))])
    client.hset(KEYS.channel("A"), "k" + GROUP, b"")
    client.hdel(KEYS.channel("A"), "g" + GROUP)
    with pytest.raises(IndexCorrupt, match="no group"):
        backend.reader().channel_states(["A"])


def test_a_block_that_lost_its_end_is_corruption(backend, client):
    """The directory counts more of it than is there."""
    writer = backend.writer(block_bytes=100)
    for seqno in (1, 2, 3, 4):
        writer.write([append("A", 1, entry(0, seqno))])
    client.set(KEYS.block("A", GROUP, 1), b"H")
    with pytest.raises(IndexCorrupt, match="missing"):
        ChangesReader(backend.reader()).changes(["A"])


def test_garbled_meta_and_quarantine_are_corruption(backend, client):
    client.lpush(KEYS.quarantine, b"\xc1")
    with pytest.raises(IndexCorrupt, match="quarantine"):
        backend.reader().quarantined()
    client.set(KEYS.meta, "{}")
    with pytest.raises(IndexCorrupt, match="meta"):
        backend.reader().meta()


def test_command_that_redis_does_not_understand_is_our_fault(redis_url):
    link = open_link(redis_url, OutcomeUnknown)
    with pytest.raises(InvariantBroken, match="NOSUCH"):
        link.execute("NOSUCH", "secret value")
    link.close()


def test_waiting_reader_learns_that_its_connection_was_cut(backend, client):
    reader = backend.reader()
    failed = threading.Event()

    def wait() -> None:
        try:
            reader.wait_stable(0, timeout_s=30)
        except StoreUnavailable:
            failed.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    until(lambda: client.client_list(_type="pubsub"), "the reader to have subscribed")
    client.client_kill_filter(_type="pubsub")
    waiter.join(timeout=30)
    assert failed.is_set()
    assert reader.wait_stable(1, timeout_s=30) == 0


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
