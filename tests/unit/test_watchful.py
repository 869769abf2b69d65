"""What says that a server has a successor, and what does not."""

import socket
from contextlib import closing

import pytest

from channelindex.errors import StoreUnavailable
from channelindex.redis import cluster_link
from channelindex.redis.cluster_link import ClusterLink
from channelindex.redis.endpoints import server_of
from channelindex.redis.errors import Purpose
from channelindex.redis.watchful import WatchfulSocket
from channelindex.redis_url import parse_redis_url
from channelindex.stores.redis.store_link import SCRIPTS

A, B = [b"a", 1, b"id-a"], [b"b", 2, b"id-b"]
WHOLE = [[0, 8191, A], [8192, 16383, B]]


def test_a_parser_may_look_whether_the_server_has_hung_up_without_taking_anything():
    """So does hiredis' parser, which redis-py uses where that is installed."""
    ours, theirs = socket.socketpair()
    with closing(ours), closing(theirs):
        watchful = WatchfulSocket(ours, 60.0, lambda: True)
        theirs.sendall(b"+OK")
        assert watchful.recv(1, socket.MSG_PEEK) == b"+"
        assert watchful.recv(3) == b"+OK"
        theirs.close()
        assert watchful.recv(1, socket.MSG_PEEK) == b""


@pytest.mark.parametrize(
    ("told", "is_replaced"),
    [
        (WHOLE, False),
        ([[0, 16383, B, A]], True),
        ([], False),  # of who was taken out of the cluster
        (None, False),  # who was asked is silent, too
    ],
)
def test_a_node_of_a_cluster_has_a_successor_if_another_knows_masters_without_it(monkeypatch, told, is_replaced):
    replies = iter([WHOLE, told])
    monkeypatch.setattr(ClusterLink, "_ask_layout", lambda _: cluster_link._layout(next(replies), ("a", 1)))
    monkeypatch.setattr(cluster_link, "ask_once", lambda *_: next(replies))
    purpose = Purpose("index.store", SCRIPTS, StoreUnavailable, StoreUnavailable)
    link = ClusterLink(parse_redis_url("redis+cluster://a:1,b:2"), purpose, "")
    of_a, _ = link.servers()
    assert of_a._connect().has_successor() == is_replaced


def test_a_server_that_has_not_said_yet_who_it_is_is_waited_for(redis_url):
    """It is slow to answer who connects, and answers who looks."""
    connection = server_of(parse_redis_url(redis_url))()
    assert connection.run_id is None
    assert not connection.has_successor()
    connection.connect()
    assert not connection.has_successor()
    connection.run_id = "another"
    assert not connection.has_successor(), "it is a proxy of the same: they have one history"
    connection.replication_id = "another"
    assert connection.has_successor()
    connection.disconnect()
