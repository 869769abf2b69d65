"""The cluster's map: which addresses are for us, and who has which vbucket."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from channelindex.errors import ChannelIndexError, ConfigInvalid, ProtocolError, SourceUnavailable
from channelindex.feeds.base import SourceInfo
from channelindex.feeds.dcp.cluster import Cluster
from channelindex.feeds.dcp.connstr import Endpoint, SourceAddress, parse_source_url
from channelindex.feeds.dcp.node import Node
from channelindex.feeds.dcp.topology import ClusterMap, parse_cluster_map
from channelindex.mcbp import Op
from tests.support.dcp_replay import cluster_config
from tests.support.recording import by_connection
from tests.support.shared import shared_path

VIA = Endpoint("seed.example", 11210)


def node(host: str, *, kv: int = 11210, tls: int = 11207, external: dict[str, Any] | None = None) -> dict[str, Any]:
    alternates = {"alternateAddresses": {"external": external}} if external else {}
    return {"services": {"kv": kv, "kvSSL": tls, "mgmt": 8091}, "hostname": host, **alternates}


def config(*nodes: dict[str, Any], chains: list[list[int]] | None = None, servers: list[str] | None = None) -> bytes:
    """A configuration in which all of *nodes* are data nodes, unless *servers* says which are."""
    listed = [f"{each.get('hostname', '$HOST')}:{each['services']['kv']}" for each in nodes]
    server_map = {"serverList": listed if servers is None else servers, "vBucketMap": chains or [[0]]}
    return msgspec.json.encode(
        {"uuid": "ab", "rev": 7, "revEpoch": 2, "nodesExt": nodes, "vBucketServerMap": server_map}
    )


def parse(text: bytes, url: str = "couchbase://seed.example/b", via: Endpoint = VIA) -> ClusterMap:
    return parse_cluster_map(text, via, parse_source_url(url))


def test_the_map_of_a_real_server() -> None:
    lines = by_connection(shared_path("golden/r_cluster_config.jsonl"))["c1"]
    text = [line.frame.value for line in lines if line.direction == "s2c" and line.opcode == Op.GET_CLUSTER_CONFIG][-1]
    found = parse(text, "couchbase://127.0.0.1:11310/default")
    assert found.source == SourceInfo("11112222333344445555666677778888", 4)
    assert found.revision == (0, 95455906)
    assert found.nodes == (Endpoint("127.0.0.1", 11310),)
    assert found.here == found.owner(3) == Endpoint("127.0.0.1", 11310)


def test_vbuckets_have_the_nodes_that_their_chains_number() -> None:
    found = parse(config(node("a"), node("b"), chains=[[1, 0], [0, -1], [-1, 1], []]))
    a, b = Endpoint("a", 11210), Endpoint("b", 11210)
    assert [found.owner(vb) for vb in range(5)] == [b, a, None, None, None]
    assert [found.copies(vb) for vb in range(5)] == [[b, a], [a, None], [None, b], [], []]


def test_services_without_data_do_not_count_as_nodes() -> None:
    query = {"services": {"n1ql": 8093}, "hostname": "q"}
    found = parse(
        config(node("a"), node("b"), servers=["a:11210", "b:11210"]).replace(
            b'"nodesExt":[', b'"nodesExt":[' + msgspec.json.encode(query) + b","
        )
    )
    assert found.nodes == (Endpoint("a", 11210), Endpoint("b", 11210))


def test_a_node_that_joins_has_no_vbuckets_yet() -> None:
    assert parse(config(node("a"), node("new"), servers=["a:11210"])).nodes == (Endpoint("a", 11210),)


@pytest.mark.parametrize("hostname", ["$HOST", None])
def test_a_single_node_is_where_we_reached_it(hostname: str | None) -> None:
    single = node("x")
    single.pop("hostname")
    if hostname:
        single["hostname"] = hostname
    assert parse(config(single)).nodes == (VIA,)


def test_without_a_list_of_services_the_list_of_servers_counts() -> None:
    text = config(servers=["$HOST:9000", "[::1]:11210", "c:x"], chains=[[2]])
    assert parse(text).nodes == (Endpoint("seed.example", 9000), Endpoint("::1", 11210), Endpoint("c", 11210))
    assert parse(text, "couchbases://seed.example/b").nodes[0] == Endpoint("seed.example", 11207)


def test_tls_has_its_own_ports() -> None:
    assert parse(config(node("a", tls=9999)), "couchbases://a/b").nodes == (Endpoint("a", 9999),)


# -- networks

EXTERNAL = {"hostname": "pub.example", "ports": {"kv": 30001, "kvSSL": 30002}}


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("couchbase://a/b", Endpoint("a", 11210)),
        ("couchbase://other/b", Endpoint("a", 11210)),
        ("couchbase://pub.example:30001/b", Endpoint("pub.example", 30001)),
        ("couchbases://PUB.example:30002/b", Endpoint("pub.example", 30002)),
        ("couchbase://a/b?network=external", Endpoint("pub.example", 30001)),
        ("couchbase://pub.example/b?network=default", Endpoint("a", 11210)),
    ],
)
def test_the_network_is_that_of_the_seeds_unless_one_is_named(url: str, endpoint: Endpoint) -> None:
    assert parse(config(node("a", external=EXTERNAL)), url).nodes == (endpoint,)


def test_an_alternate_address_without_ports_has_the_same_ones() -> None:
    found = parse(config(node("a", external={"hostname": "pub"})), "couchbase://pub/b")
    assert found.nodes == (Endpoint("pub", 11210),)


def test_a_network_that_a_node_is_not_in_is_reported() -> None:
    with pytest.raises(ConfigInvalid, match="network=external, in which the node a has no address"):
        parse(config(node("a")), "couchbase://a/b?network=external")


@pytest.mark.parametrize("url", ["couchbase://pub.example:30001/b", "couchbase://a/b?network=external"])
def test_a_node_that_joins_without_an_address_for_us_is_named_and_the_others_count(url: str) -> None:
    text = config(node("a", external=EXTERNAL), node("new"), servers=["a:11210", "new:11210"], chains=[[0], [1]])
    found = parse(text, url)
    assert found.nodes == (Endpoint("pub.example", 30001), None)
    assert found.reachable == (Endpoint("pub.example", 30001),)
    assert (found.owner(0), found.owner(1)) == (Endpoint("pub.example", 30001), None)
    assert found.problems == ("source.url asks for network=external, in which the node new has no address",)


def test_an_alternate_address_without_the_data_port_is_reported_as_what_it_is() -> None:
    text = config(node("a", external={"hostname": "pub", "ports": {"mgmt": 30091}}))
    with pytest.raises(
        ConfigInvalid, match="node a has no port 'kv' among those of its address pub in the network ext"
    ):
        parse(text, "couchbase://pub/b")


def test_what_the_bucket_sends_to_a_running_feed_is_never_taken_for_a_wrong_setting() -> None:
    address = parse_source_url("couchbase://pub.example:30001/b")
    cluster = Cluster(address, lambda node, attempt, now: pytest.fail("connects"), None)
    node_ = Node(VIA, lambda node, attempt, now: pytest.fail("connects"))
    with pytest.raises(ConfigInvalid):  # but at the start it may be
        cluster.learn(node_, config(node("a")).replace(b'"kv":11210,', b""), 0.0)
    cluster.learn(node_, config(node("a", external=EXTERNAL)), 0.0)
    joining = config(node("a", external=EXTERNAL), node("new"), servers=["a:11210", "new:11210"])
    cluster.learn(node_, joining, 1.0)
    none_left = config(node("a", external={"hostname": "pub.example", "ports": {"mgmt": 30091}}))
    with pytest.raises(SourceUnavailable):
        cluster.learn(node_, none_left, 2.0)


def test_a_node_without_the_port_that_we_need_is_reported() -> None:
    plain, tls = node("a"), node("a")
    del plain["services"]["kvSSL"]
    with pytest.raises(ConfigInvalid, match="offers no TLS; use couchbase://"):
        parse(config(plain), "couchbases://a/b")
    text = config(tls).replace(b'"kv":11210,', b"")
    with pytest.raises(ConfigInvalid, match="use couchbases://"):
        parse(text, "couchbase://a/b")


# -- what is none


@pytest.mark.parametrize(
    "text", [b"", b"{}", b"[]", b"\xff", b'{"uuid": 1}', b'{"uuid": "x", "vBucketServerMap": {"vBucketMap": 3}}']
)
def test_what_is_no_configuration_breaks_the_protocol(text: bytes) -> None:
    with pytest.raises(ProtocolError, match="configuration"):
        parse(text)


@pytest.mark.parametrize("text", [cluster_config(), cluster_config(1, chains=())])
def test_a_bucket_that_is_being_made_has_no_map_yet(text: bytes) -> None:
    with pytest.raises(SourceUnavailable):
        parse(text)


@pytest.mark.parametrize("port", [0, 70000, "x", -1])
def test_a_port_that_is_none_breaks_the_protocol(port: object) -> None:
    bad = node("a")
    bad["services"]["kv"] = port
    with pytest.raises(ProtocolError, match="port"):
        parse(config(bad, servers=["a:1"]))


@given(st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3)))
def test_no_map_raises_anything_else(odd: Any) -> None:
    for text in (
        {"uuid": "x", "vBucketServerMap": {"vBucketMap": odd, "serverList": ["a:1"]}},
        {"uuid": "x", "vBucketServerMap": {"vBucketMap": [[0]], "serverList": odd}},
        {"uuid": "x", "nodesExt": odd, "vBucketServerMap": {"vBucketMap": [[0]], "serverList": ["a:1"]}},
        {
            "uuid": "x",
            "nodesExt": [{"services": {"kv": odd}}],
            "vBucketServerMap": {"vBucketMap": [[0]], "serverList": ["a:1"]},
        },
    ):
        try:
            found = parse_cluster_map(msgspec.json.encode(text), VIA, SourceAddress((VIA,), "b"))
        except ChannelIndexError:
            continue
        found.owner(0)
