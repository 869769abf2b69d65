"""A dev bucket of several nodes: the map, moves, restarts, crashes and failovers, as a client sees them."""

import contextlib
import json
import ssl
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from channelindex.errors import ConfigInvalid
from channelindex.mcbp import Feature, Frame, Op, Status
from devbucket import DevBucket, DevBucketConfig, TlsFiles
from tests.support.mcbp_client import RawClient, Writer

N_VBUCKETS = 6
STATE_CHANGED = struct.pack(">I", 2)
PUSHED = (Feature.DUPLEX, Feature.CLUSTERMAP_NOTIFICATION)


@pytest.fixture
def bucket() -> Iterator[DevBucket]:
    with DevBucket(DevBucketConfig(n_vbuckets=N_VBUCKETS, n_nodes=3)) as running:
        yield running


@pytest.fixture
def connect(bucket: DevBucket):
    opened: list[RawClient] = []

    def connected(node: int, *features: int) -> RawClient:
        opened.append(RawClient(bucket.ports[node]))
        return opened[-1].log_in((0x06, 0x07, 0x08, 0x0B, *features))

    yield connected
    for client in opened:
        client.close()


def map_of(config: bytes) -> list[int]:
    return [owner for (owner,) in json.loads(config)["vBucketServerMap"]["vBucketMap"]]


def next_of(client: RawClient, opcode: int) -> Frame:
    while (frame := client.read()) is not None:
        if frame.opcode == opcode:
            return frame
    raise AssertionError("hung up")


def mutations(client: RawClient, n: int) -> list[bytes]:
    return [next_of(client, Op.DCP_MUTATION).key for _ in range(n)]


def vbuuid_of(accepted: Frame) -> int:
    assert accepted.status == Status.SUCCESS
    return int.from_bytes(accepted.value[:8], "big")


def test_every_node_tells_of_all_nodes_and_of_itself(bucket, connect):
    for number in range(3):
        config: dict[str, Any] = json.loads(connect(number).call(Op.GET_CLUSTER_CONFIG).value)
        servers = config["vBucketServerMap"]["serverList"]
        assert servers == [f"127.0.0.1:{port}" for port in bucket.ports]
        assert [node["services"]["kv"] for node in config["nodesExt"]] == bucket.ports
        assert ["thisNode" in node for node in config["nodesExt"]] == [number == other for other in range(3)]
        assert [owner for (owner,) in config["vBucketServerMap"]["vBucketMap"]] == [0, 0, 1, 1, 2, 2]


def test_replicas_are_in_the_map_and_say_what_they_have():
    with DevBucket(DevBucketConfig(n_vbuckets=3, n_nodes=3, n_replicas=1)) as bucket:
        clients = [RawClient(port).log_in() for port in bucket.ports]

        def persisted(node: int) -> int:
            found = clients[node].call(Op.OBSERVE_SEQNO, value=vbuuid.to_bytes(8, "big"))
            assert found.status == Status.SUCCESS
            return int(struct.unpack(">BHQQQ", found.value)[3])

        def chains() -> list[list[int]]:
            return list(json.loads(clients[1].call(Op.GET_CLUSTER_CONFIG).value)["vBucketServerMap"]["vBucketMap"])

        assert chains() == [[0, 1], [1, 2], [2, 0]]
        feed = RawClient(bucket.ports[0]).log_in().open_dcp("feed")
        vbuuid = vbuuid_of(feed.request_stream(0))
        Writer(clients[0].call).set(0, b"everywhere", b"{}")
        assert (persisted(0), persisted(1)) == (1, 1)
        bucket.stall_replicas(on=True)
        Writer(clients[0].call).set(0, b"here", b"{}")
        assert (persisted(0), persisted(1)) == (2, 1)
        assert clients[2].call(Op.OBSERVE_SEQNO, value=bytes(8)).status == Status.NOT_MY_VBUCKET
        bucket.failover_node(0)
        assert chains() == [[0, 1], [0, 1], [1, 0]]  # places in a list that lacks the first node
        assert bucket.high_seqnos()[0] == 1
        for client in (*clients, feed):
            client.close()


def test_vbucket_of_another_node_is_refused_with_the_map(connect):
    client = connect(0)
    assert Writer(client.call).set(1, b"k", b"{}").status == Status.SUCCESS
    refused = Writer(client.call).set(2, b"k", b"{}")
    assert refused.status == Status.NOT_MY_VBUCKET
    assert map_of(refused.value) == [0, 0, 1, 1, 2, 2]
    feed = connect(1).open_dcp()
    assert feed.request_stream(0).status == Status.NOT_MY_VBUCKET
    assert feed.request_stream(3).status == Status.SUCCESS


def test_seqnos_are_reported_of_the_vbuckets_of_the_node_only(connect):
    answer = connect(1).call(Op.GET_ALL_VB_SEQNOS).value
    assert [vb for vb, _ in struct.iter_unpack(">HQ", answer)] == [2, 3]


def test_moved_vbucket_ends_its_stream_and_goes_on_elsewhere_with_its_data_and_history(bucket, connect):
    Writer(connect(0).call).set(1, b"k", b"{}")
    feed = connect(0, *PUSHED).open_dcp()
    vbuuid = vbuuid_of(feed.request_stream(1))
    assert mutations(feed, 1) == [b"k"]
    bucket.move([1], node=2)
    assert bucket.owners() == [0, 2, 1, 1, 2, 2]
    pushed = next_of(feed, 0x01)
    assert (pushed.magic, map_of(pushed.value)) == (0x82, [0, 2, 1, 1, 2, 2])
    assert next_of(feed, Op.DCP_STREAM_END).extras == STATE_CHANGED
    assert feed.request_stream(1, start=1, vbuuid=vbuuid).status == Status.NOT_MY_VBUCKET
    there = connect(2).open_dcp()
    assert vbuuid_of(there.request_stream(1, start=1, vbuuid=vbuuid)) == vbuuid
    Writer(connect(2).call).set(1, b"new", b"{}")
    assert mutations(there, 1) == [b"new"]


def test_revision_of_the_map_rises_with_every_change(bucket, connect):
    def revision() -> Any:
        return json.loads(connect(0).call(Op.GET_CLUSTER_CONFIG).value)["rev"]

    before = revision()
    bucket.move([5], node=0)
    bucket.rebalance()
    assert revision() == before + 2


def test_stopped_node_is_gone_and_comes_back_with_what_it_had(bucket, connect):
    Writer(connect(1).call).set(2, b"k", b"{}")
    feed = connect(1).open_dcp()
    vbuuid = vbuuid_of(feed.request_stream(2))
    mutations(feed, 1)
    bucket.stop_node(1)
    assert feed.read() is None
    with pytest.raises(ConnectionRefusedError):
        RawClient(bucket.ports[1])
    assert map_of(connect(0).call(Op.GET_CLUSTER_CONFIG).value) == [0, 0, 1, 1, 2, 2]
    bucket.start_node(1)
    again = connect(1).open_dcp()
    assert vbuuid_of(again.request_stream(2, vbuuid=vbuuid)) == vbuuid
    disk = 2
    assert struct.unpack(">QQI", next_of(again, Op.DCP_SNAPSHOT_MARKER).extras) == (0, 1, disk)


def test_crashed_node_loses_its_tail_and_its_clients_roll_back(bucket, connect):
    writer = Writer(connect(2).call)
    for i in range(4):
        writer.set(5, b"%d" % i, b"{}")
    feed = connect(2).open_dcp()
    vbuuid = vbuuid_of(feed.request_stream(5))
    mutations(feed, 4)
    bucket.crash_node(2, lose=3)
    assert feed.read() is None
    bucket.start_node(2)
    assert bucket.high_seqnos()[5] == 1
    refused = connect(2).open_dcp().request_stream(5, start=4, vbuuid=vbuuid)
    assert (refused.status, refused.value) == (Status.ROLLBACK, struct.pack(">Q", 1))


def test_failed_over_node_leaves_its_vbuckets_to_the_others_without_their_tails(bucket, connect):
    writer = Writer(connect(0).call)
    for vb, n in ((0, 5), (1, 1)):
        for i in range(n):
            writer.set(vb, b"%d" % i, b"{}")
    bucket.failover_node(0, lose=2)
    config = json.loads(connect(1).call(Op.GET_CLUSTER_CONFIG).value)
    assert config["vBucketServerMap"]["serverList"] == [f"127.0.0.1:{port}" for port in bucket.ports[1:]]
    assert config["vBucketServerMap"]["vBucketMap"] == [[0], [1], [0], [0], [1], [1]]
    assert len(config["nodesExt"]) == 2
    assert bucket.high_seqnos()[:2] == [3, 0]
    feed = connect(1).open_dcp()
    assert feed.request_stream(0).status == Status.SUCCESS
    assert mutations(feed, 3) == [b"0", b"1", b"2"]


def test_rebalance_takes_a_node_back_that_was_failed_over(bucket, connect):
    bucket.failover_node(0)
    bucket.start_node(0)
    refused = Writer(connect(0).call).get(0, b"k")
    assert (refused.status, map_of(refused.value)) == (Status.NOT_MY_VBUCKET, [0, 1, 0, 0, 1, 1])
    bucket.rebalance()
    assert bucket.owners() == [0, 0, 1, 1, 2, 2]
    assert Writer(connect(0).call).get(0, b"k").status == Status.KEY_ENOENT


def test_only_what_is_there_can_be_failed(bucket):
    with pytest.raises(ConfigInvalid, match="no node 3: the nodes are 0 to 2"):
        bucket.stop_node(3)
    with pytest.raises(ConfigInvalid, match="no vbucket 6"):
        bucket.move([6], node=0)
    bucket.failover_node(0)
    bucket.failover_node(1)
    with pytest.raises(ConfigInvalid, match="no other node is running"):
        bucket.failover_node(2)


@pytest.mark.parametrize(("level", "after_crash", "after_failover"), [(0, 0, 0), (1, 0, 2), (2, 2, 2), (3, 2, 2)])
def test_no_failover_loses_what_was_durable_and_no_crash_what_was_on_disk(
    bucket, connect, level, after_crash, after_failover
):
    for node, vb in ((0, 0), (1, 2)):
        writer = Writer(connect(node).call)
        writer.set(vb, b"before", b"{}")
        assert connect(node).durable_set(vb, b"durable", level).status == Status.SUCCESS
        writer.set(vb, b"behind", b"{}")
    bucket.crash_node(0, lose=3)
    bucket.failover_node(1, lose=3)
    assert (bucket.high_seqnos()[0], bucket.high_seqnos()[2]) == (after_crash, after_failover)


def test_a_cluster_of_which_no_node_runs_is_not_rebalanced(bucket):
    for node in range(3):
        bucket.stop_node(node)
    with pytest.raises(ConfigInvalid, match="nothing to rebalance to: no node is running"):
        bucket.rebalance()
    assert bucket.owners() == [0, 0, 1, 1, 2, 2]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def tls_files(folder: Path, authority: trustme.CA, *, client_ca: bool) -> TlsFiles:
    server = authority.issue_cert("127.0.0.1", "localhost")
    server.private_key_pem.write_to_path(folder / "key.pem")
    for blob in server.cert_chain_pems:
        blob.write_to_path(folder / "certificate.pem", append=True)
    authority.cert_pem.write_to_path(folder / "ca.pem")
    return TlsFiles(folder / "certificate.pem", folder / "key.pem", folder / "ca.pem" if client_ca else None)


def tls_client(port: int, context: ssl.SSLContext) -> RawClient:
    return RawClient(port, wrap=lambda plain: context.wrap_socket(plain, server_hostname="127.0.0.1"))


def test_tls_ports_are_in_the_map_and_speak_tls(tmp_path, authority):
    files = tls_files(tmp_path, authority, client_ca=False)
    with DevBucket(DevBucketConfig(n_vbuckets=2, n_nodes=2, tls=files)) as bucket:
        for number in range(2):
            client = tls_client(bucket.tls_ports[number], ssl.create_default_context(cafile=str(tmp_path / "ca.pem")))
            client.log_in()
            config = json.loads(client.call(Op.GET_CLUSTER_CONFIG).value)
            assert [node["services"]["kvSSL"] for node in config["nodesExt"]] == bucket.tls_ports
            Writer(client.call).set(number, b"k", b"{}")
            client.open_dcp().request_stream(number)
            assert mutations(client, 1) == [b"k"]
            client.close()


def test_with_tls_the_nodes_are_named_without_a_bucket_but_not_without_a_login(tmp_path, authority):
    files = tls_files(tmp_path, authority, client_ca=False)
    with DevBucket(DevBucketConfig(n_vbuckets=2, n_nodes=2, tls=files)) as bucket:
        client = RawClient(bucket.port)
        assert client.call(Op.GET_CLUSTER_CONFIG).status == Status.NO_BUCKET
        assert client.call(Op.SASL_AUTH, key=b"PLAIN", value=b"\0Administrator\0password").status == Status.SUCCESS
        config = json.loads(client.call(Op.GET_CLUSTER_CONFIG).value)
        assert [node["services"]["kvSSL"] for node in config["nodesExt"]] == bucket.tls_ports
        client.close()


def test_tls_with_a_client_ca_asks_for_a_certificate(tmp_path, authority):
    files = tls_files(tmp_path, authority, client_ca=True)
    with DevBucket(DevBucketConfig(n_vbuckets=2, tls=files)) as bucket:
        context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
        stranger = tls_client(bucket.tls_ports[0], context)
        with contextlib.suppress(ssl.SSLError):  # the alert, unless the end of the connection overtakes it
            assert stranger.read() is None
        stranger.close()
        authority.issue_cert("client@example.org").configure_cert(context)
        friend = tls_client(bucket.tls_ports[0], context)
        friend.log_in()
        friend.close()


def test_tls_files_that_cannot_be_read_are_a_configuration_error(tmp_path):
    files = TlsFiles(tmp_path / "none.pem", tmp_path / "none.key")
    with pytest.raises(ConfigInvalid, match="TLS files"), DevBucket(DevBucketConfig(n_vbuckets=1, tls=files)):
        pass


def nodes_ext(client: RawClient) -> list[dict[str, Any]]:
    return list(json.loads(client.call(Op.GET_CLUSTER_CONFIG).value)["nodesExt"])


def test_node_joins_without_vbuckets_and_without_an_alternate_address():
    """As during a rebalance of a cluster whose nodes got their alternate addresses one by one."""
    with DevBucket(DevBucketConfig(n_vbuckets=4, alternate_host="localhost")) as bucket:
        client = RawClient(bucket.port).log_in((0x06, 0x07, 0x08, 0x0B, *PUSHED))
        assert bucket.add_node() == 1
        pushed = client.read()
        assert pushed is not None
        assert map_of(pushed.value) == [0, 0, 0, 0]
        old, joined = nodes_ext(client)
        assert old["alternateAddresses"]["external"]["ports"] == {"kv": bucket.port, "mgmt": 8091}
        assert "alternateAddresses" not in joined
        with contextlib.closing(RawClient(joined["services"]["kv"]).log_in()) as there:
            assert Writer(there.call).set(0, b"k", b"{}").status == Status.NOT_MY_VBUCKET
            bucket.rebalance()
            assert Writer(there.call).set(3, b"k", b"{}").status == Status.SUCCESS
        bucket.set_alternate(1, "localhost", kv=False)
        client.close()
        client = RawClient(bucket.port).log_in()
        assert nodes_ext(client)[1]["alternateAddresses"]["external"] == {
            "hostname": "localhost",
            "ports": {"mgmt": 8091},
        }
        bucket.set_alternate(1)
        assert "alternateAddresses" not in nodes_ext(client)[1]
        client.close()


def test_there_is_a_most_of_nodes():
    with DevBucket(DevBucketConfig(n_vbuckets=1, n_nodes=16)) as bucket:
        with pytest.raises(ConfigInvalid, match="at most 16 nodes"):
            bucket.add_node()
        with pytest.raises(ConfigInvalid, match="there is no node 16"):
            bucket.set_alternate(16, "localhost")
