"""The index in a Redis Cluster: where requests go, and what follows or waits for a slot that moves."""

import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
import redis

from channelindex.blocks import N_SLOTS, slot_of
from channelindex.errors import OutcomeUnknown, OwnershipLost, StoreUnavailable
from channelindex.settings import IndexSettings
from channelindex.stores import open_reader
from channelindex.stores.redis.keys import Keys
from tests.support.redis_cluster import ClusterOfThree
from tests.support.stores import GROUP, META, Backend, all_entries, append, checkpoints, entry

KEYS = Keys("test")
CHANNELS = [f"channel-{number}" for number in range(200)]


@pytest.fixture
def backend(cluster_url: str) -> Iterator[Backend]:
    opened = Backend(cluster_url)
    opened.owner().create_or_check(META)
    yield opened
    opened.close()


def _tag(channel: str) -> str:
    return str(slot_of(channel))


def _elsewhere(cluster: ClusterOfThree, tag: str) -> int:
    slot = cluster.nodes[0].execute_command("CLUSTER", "KEYSLOT", f"{{{tag}}}")
    return (cluster.owner_of(slot) + 1) % 3


def test_batch_of_all_slots_is_one_script_call_per_slot_and_then_an_append_per_channel(backend, cluster_of_three):
    writer = backend.writer()
    batch = [append(channel, 1, entry(0, 1)) for channel in CHANNELS]
    backend.writer().write(batch)  # it makes every node know the script
    assert len({slot_of(channel) for channel in CHANNELS}) == N_SLOTS
    for n_scripts in (N_SLOTS, 0):
        for node in cluster_of_three.nodes:
            node.config_resetstat()
        writer.write(batch)
        assert sum(_calls(node, "evalsha") for node in cluster_of_three.nodes) == n_scripts
        appends = [_calls(node, "append") for node in cluster_of_three.nodes]
        assert sum(appends) == len(CHANNELS)
        assert all(appends)


def _calls(node: redis.Redis, command: str) -> int:
    stats = node.execute_command("INFO", "commandstats").decode()
    lines = [line for line in stats.splitlines() if line.startswith(f"cmdstat_{command}:")]
    return sum(int(line.partition("calls=")[2].partition(",")[0]) for line in lines)


def test_every_channel_of_every_node_is_listed_once(backend):
    backend.writer().write([append(channel, 1, entry(0, 1)) for channel in CHANNELS])
    assert sorted(backend.reader().channels()) == sorted(CHANNELS)


@pytest.mark.parametrize("tag", ["i", _tag("A")])
def test_writer_owner_and_reader_follow_a_slot_that_moved(backend, cluster_of_three, tag):
    owner, writer, reader = backend.owner(), backend.writer(), backend.reader()
    epoch = owner.next_epoch()
    owner.begin(0, epoch, "n1")
    writer.write([append("A", epoch, entry(0, 1))])
    owner.advance(epoch, checkpoints({0: 1}))
    counter = reader.stable_counter()
    cluster_of_three.move(tag, _elsewhere(cluster_of_three, tag))
    writer.write([append("A", epoch, entry(0, 2))])
    assert [each.seqno for _, each in all_entries(reader, "A")] == [1, 2]
    successor = backend.owner()
    assert successor.next_epoch() > epoch
    successor.begin(0, epoch + 1, "n2")
    successor.advance(epoch + 1, checkpoints({0: 2}))
    assert reader.wait_stable(counter, timeout_s=5) > counter


def test_slot_on_its_way_is_read_and_not_written_and_loses_nothing(backend, cluster_of_three):
    writer, reader = backend.writer(), backend.reader()
    writer.write([append("A", 1, entry(0, 1))])
    to = _elsewhere(cluster_of_three, _tag("A"))
    source, slot = cluster_of_three.begin_move(_tag("A"), to)
    for key in (KEYS.channel("A"), KEYS.block("A", GROUP, 0), KEYS.names(slot_of("A"))):
        with pytest.raises(StoreUnavailable, match="moved"):
            backend.writer().write([append("A", 1, entry(0, 2))])
        assert [each.seqno for _, each in all_entries(reader, "A")] == [1]
        cluster_of_three.nodes[source].execute_command("MIGRATE", "127.0.0.1", cluster_of_three.ports[to], key, 0, 5000)
    assert not cluster_of_three.nodes[source].execute_command("CLUSTER", "COUNTKEYSINSLOT", slot)
    with pytest.raises(StoreUnavailable, match="moved"):
        writer.write([append("A", 1, entry(0, 2))])
    cluster_of_three.end_move(slot, to)
    writer.write([append("A", 1, entry(0, 2))])
    assert [each.seqno for _, each in all_entries(reader, "A")] == [1, 2]
    assert list(reader.channels()) == ["A"]


def test_scripts_that_a_node_forgot_are_loaded_again(backend, cluster_of_three):
    writer = backend.writer()
    batch = [append(channel, 1, entry(0, 1)) for channel in CHANNELS]
    writer.write(batch)
    cluster_of_three.nodes[1].script_flush()
    writer.write(batch)
    assert all(len(all_entries(backend.reader(), channel)) == 2 for channel in CHANNELS)


def test_owner_does_not_advance_after_any_node_restarted_its_connections(backend, cluster_of_three):
    """Whichever master closes its connection may be another one, or empty, when it is met again."""
    owner = backend.owner()
    epoch = owner.next_epoch()
    owner.begin(0, epoch, "n1")
    for node in cluster_of_three.nodes:
        node.client_kill_filter(_type="normal", skipme=True)
        with pytest.raises(StoreUnavailable):
            owner.advance(epoch, checkpoints({0: 1}))
        owner.advance(epoch, checkpoints({0: 1}))


def test_cluster_that_cannot_be_reached_is_unavailable():
    reader = open_reader(IndexSettings("test", "redis+cluster://127.0.0.1:1,127.0.0.1:2"))
    with pytest.raises(StoreUnavailable, match="no node of the cluster"):
        reader.meta()


class TestALostMaster:
    """A cluster of its own, of which one master is lost."""

    @pytest.fixture
    def cluster(self) -> Iterator[ClusterOfThree]:
        with ClusterOfThree() as cluster:
            yield cluster

    def test_its_slots_are_unavailable_and_an_empty_successor_is_not_trusted(self, cluster):
        backend = Backend(cluster.url)
        owner, writer = backend.owner(), backend.writer()
        owner.create_or_check(META)
        epoch = owner.next_epoch()
        owner.begin(0, epoch, "n1")
        writer.write([append(channel, epoch, entry(0, 1)) for channel in CHANNELS])
        owner.advance(epoch, checkpoints({0: 1}))
        lost = _elsewhere(cluster, "i")
        cluster.restart_empty(lost)
        with pytest.raises((StoreUnavailable, OutcomeUnknown)):
            writer.write([append(channel, epoch, entry(0, 2)) for channel in CHANNELS])
        deadline = time.monotonic() + 60
        while True:
            assert time.monotonic() < deadline
            with suppress(StoreUnavailable):
                with pytest.raises(OwnershipLost):
                    owner.advance(epoch, checkpoints({0: 2}))
                break
            time.sleep(0.05)
        assert owner.next_epoch() > epoch
        backend.close()
