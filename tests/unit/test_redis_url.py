"""URLs of Redis: what they say, and what is wrong with those that say nothing."""

import pytest

from channelindex.redis_url import parse_redis_url, without_password
from channelindex.urls import mask_url


def test_one_server_with_everything():
    address = parse_redis_url("rediss://me:s%40cret@redis.example:7000/3?ssl_ca_certs=/ca.pem")
    assert address.nodes == (("redis.example", 7000),)
    assert (address.username, address.password, address.db) == ("me", "s@cret", 3)
    assert (address.tls, address.is_cluster, address.is_sentinel) == (True, False, False)
    assert address.options == {"ssl_ca_certs": "/ca.pem"}


def test_what_is_left_out_has_a_default():
    address = parse_redis_url("redis://redis.example")
    assert (address.nodes, address.db, address.username, address.password) == (
        (("redis.example", 6379),),
        0,
        None,
        None,
    )


def test_unix_socket():
    address = parse_redis_url("unix://me:pw@/run/redis.sock?db=2")
    assert (address.path, address.db, address.username, address.nodes) == ("/run/redis.sock", 2, "me", ())


def test_sentinels_name_a_service():
    address = parse_redis_url("redis+sentinel://:pw@s1:26380,s2/leases/1?sentinel_password=x")
    assert address.is_sentinel
    assert address.nodes == (("s1", 26380), ("s2", 26379))
    assert (address.service, address.db, address.password) == ("leases", 1, "pw")
    assert address.options == {"sentinel_password": "x"}


def test_cluster_by_some_of_its_nodes():
    address = parse_redis_url("rediss+cluster://me:pw@a:1,[::1]:2,[fe80::1]")
    assert address.is_cluster
    assert address.tls
    assert address.nodes == (("a", 1), ("::1", 2), ("fe80::1", 6379))


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("http://h", "must be redis://"),
        ("h:6379", "must be redis://"),
        ("", "must be redis://"),
        ("redis://", "names no host"),
        ("redis://h:port", "number of a port"),
        ("redis://h:0", "0 where a port belongs"),
        ("redis://h:1/x", "'x'"),
        ("redis://h/1/2", "1/2"),
        ("redis://a,b/0", "several hosts"),
        ("unix://", "unix:///path"),
        ("unix://host/path", "unix:///path"),
        ("redis+sentinel://a", "host:port/service/db"),
        ("redis+sentinel://a/s/1/2", "host:port/service/db"),
        ("redis+cluster://a/1", "only one"),
        ("redis+cluster://a,,b", "names no host"),
    ],
)
def test_wrong_urls_are_refused_with_the_reason(url, complaint):
    with pytest.raises(ValueError, match=complaint):
        parse_redis_url(url)


def test_messages_show_no_password():
    assert without_password("redis+sentinel://me:pw@a:1,b:2/s/0?sentinel_password=x") == "redis+sentinel://a:1,b:2/s/0"


SECRET = "s3cr3t"


@pytest.mark.parametrize(
    "url",
    [
        f"redis://u:{SECRET}/x@h:6379",
        f"redis://u:{SECRET}?x@h:6379",
        f"redis://u:{SECRET}#x@h:6379",
        f"redis://u:x/{SECRET}@h:6379",
        f"redis://u:{SECRET}[@h:6379",
        f"redis://u:{SECRET}\u2100@h:6379",
        f"redis://u:{SECRET}@h:port",
        f"redis://u:{SECRET}@",
        f"redis://u:{SECRET}@h/x",
        f"redis://u:{SECRET}@h,g",
        f"http://u:{SECRET}@h",
        f"redis+sentinel://u:{SECRET}@h?sentinel_password={SECRET}",
    ],
    ids=ascii,
)
def test_a_wrong_url_does_not_give_its_password_away(url: str) -> None:
    with pytest.raises(ValueError, match=r"must|has|names") as refused:
        parse_redis_url(url)
    assert SECRET not in str(refused.value)
    assert SECRET not in without_password(url)
    assert SECRET not in mask_url(f"index.store = {url!r}: why")
