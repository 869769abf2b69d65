"""What each way in which a Redis fails means to who asks it: unreachable, silent, full, failed over, refusing."""

import socket
import threading

import pytest
import redis

from channelindex.errors import AuthenticationFailed, InvariantBroken, OutcomeUnknown, OwnershipLost, StoreUnavailable
from channelindex.redis.link import ServerLink
from channelindex.settings import IndexSettings
from channelindex.stores import open_owner, open_reader, open_writer
from channelindex.stores.base import Quarantined
from channelindex.stores.compacting import CompactionStore, GroupChange, Switch
from channelindex.stores.redis.keys import Keys
from channelindex.stores.redis.store_link import open_link
from tests.support.node import until
from tests.support.stores import GROUP, META, Backend, all_entries, append, checkpoints, entry

KEYS = Keys("test")


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


def _switch_of_a(store: CompactionStore) -> Switch:
    """A switch that takes all full blocks of channel A, of which nothing stays."""
    (sizes,) = store.sizes(["A"])
    assert sizes is not None
    return Switch("A", 0, [GroupChange(GROUP, sizes.groups[GROUP].directory, removed=False)], None, 1, 1, b"", 0)


def _write_blocks_of_a(backend: Backend, seqnos: range) -> None:
    writer = backend.writer(block_bytes=60)
    for seqno in seqnos:
        writer.write([append("A", 1, entry(0, seqno))])


def test_blocks_are_not_compacted_away_that_a_redis_has_again_since_it_lost_its_newest_writes(backend, client):
    """What was read then names blocks that are not full any more."""
    store, reader = backend.compaction(), backend.reader()
    _write_blocks_of_a(backend, range(1, 4))
    directory = client.hgetall(KEYS.channel("A"))
    _write_blocks_of_a(backend, range(4, 8))
    switch = _switch_of_a(store)
    client.hset(KEYS.channel("A"), mapping=directory)
    before = all_entries(reader, "A")
    assert not store.switch(switch)
    assert all_entries(reader, "A") == before
    assert store.switch(_switch_of_a(store))


def test_a_compactor_goes_on_in_another_redis_only_after_it_has_noted_there_what_it_compacts(backend, client):
    """It would lack that after a rollback of the source, which a former master was told."""
    owner, store = backend.owner(), backend.compaction()
    owner.begin(0, 1, "n1")
    _write_blocks_of_a(backend, range(1, 4))
    owner.advance(1, checkpoints({0: 3}))
    through = {0: (2,) + (0,) * (META.partition_width - 1)}
    store.raise_compacted(through, {0: 1})
    switch = _switch_of_a(store)
    client.replicaof("127.0.0.1", 1)  # nobody listens there
    client.replicaof("NO", "ONE")  # its replication id is another from here on, as after a failover
    _cut_all_connections(client)
    with pytest.raises(StoreUnavailable):
        store.switch(switch)
    for _ in range(2):
        assert not store.switch(switch)
        assert not store.prune(0, (), ())
    store.raise_compacted(through, {0: 1})
    assert store.switch(switch)
    assert store.prune(0, (), ())


def test_stable_clock_moves_on_after_the_connection_alone_was_lost(backend, client):
    owner = backend.owner()
    owner.begin(0, 1, "n1")
    _cut_all_connections(client)
    with pytest.raises(StoreUnavailable):
        owner.advance(1, checkpoints({0: 2}))
    owner.advance(1, checkpoints({0: 2}))
    assert backend.reader().partition_records()[0].stable[0] == 2


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
    """A server that says who it is, reads one request, and closes the connection without a reply or never answers."""

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
                elif b"INFO" in request:
                    connection.sendall(b"$12\r\nrun_id:abc\r\n\r\n" * request.count(b"INFO"))
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
