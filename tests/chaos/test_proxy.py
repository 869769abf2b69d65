"""A link passes everything on, and fails the way it is told to."""

import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest
import redis

from devbucket.embedded_redis import EmbeddedRedis
from tests.chaos.proxy import Link, Proxy
from tests.support.node import until

PATIENCE_S = 60.0
TIMEOUT_S = 0.3
"""For an answer that does not come."""


@pytest.fixture
def link(redis_server: EmbeddedRedis, redis_url: str) -> Iterator[Link]:
    with Proxy() as proxy:
        yield proxy.link(redis_server.socket)


@pytest.fixture
def client(link: Link) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(link.url, socket_timeout=PATIENCE_S, retry=None) as client:
        yield client


@pytest.fixture
def impatient(link: Link) -> Iterator[redis.Redis]:
    """A client of the link that is connected, and soon gives up."""
    with redis.Redis.from_url(link.url, socket_timeout=TIMEOUT_S, retry=None) as client:
        until(lambda: is_answered(client), "an answer in time")
        yield client


def is_answered(client: redis.Redis) -> bool:
    with suppress(redis.TimeoutError):
        return bool(client.ping())
    return False


def test_link_passes_on_what_is_larger_than_a_chunk(client):
    client.set("large", b"x" * 1_000_000)
    assert client.get("large") == b"x" * 1_000_000


def test_cut_connection_ends_and_the_next_one_works(link, client):
    with socket.create_connection(("127.0.0.1", link.port), 5) as sock:
        sock.sendall(b"PING\r\n")
        assert sock.recv(7) == b"+PONG\r\n"
        link.cut()
        assert sock.recv(1) == b""
    assert client.ping()


def test_refusing_link_refuses_until_it_is_set_otherwise(link, client):
    link.refuse(on=True)
    with pytest.raises(redis.ConnectionError):
        client.ping()
    link.refuse(on=False)
    assert client.ping()


def test_stalled_link_delivers_what_waited(link, client, impatient):
    link.stall(on=True)
    with pytest.raises(redis.TimeoutError):
        impatient.set("late", 1)
    link.stall(on=False)
    assert client.ping()


def test_half_open_link_swallows_for_ever_and_new_connections_work(link, client, impatient):
    link.become_half_open()
    with pytest.raises(redis.TimeoutError):
        impatient.incr("counter")
    assert client.get("counter") is None


@pytest.mark.parametrize(("reply_only", "counted"), [(False, None), (True, b"1")])
def test_lost_request_is_not_carried_out_and_one_whose_reply_is_lost_is(link, client, reply_only, counted):
    client.ping()
    link.lose(1, reply_only=reply_only)
    with pytest.raises(redis.ConnectionError):
        client.incr("counter")
    link.lose(0, reply_only=reply_only)
    assert client.get("counter") == counted


def test_server_that_is_away_ends_the_connection(tmp_path):
    with Proxy() as proxy:
        link = proxy.link(tmp_path / "nobody.sock")
        with socket.create_connection(("127.0.0.1", link.port), 5) as sock:
            assert sock.recv(1) == b""
