"""The connection string."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channelindex.errors import ConfigInvalid
from channelindex.feeds.dcp.connstr import Endpoint, SourceAddress, parse_source_url
from channelindex.feeds.dcp.tls import TlsOptions

DB = Endpoint("db.example", 11210)


def endpoints(*pairs: tuple[str, int]) -> tuple[Endpoint, ...]:
    return tuple(Endpoint(*pair) for pair in pairs)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("couchbase://db.example/default", SourceAddress((DB,), "default")),
        ("couchbase://DB.example/default", SourceAddress((DB,), "default")),
        ("couchbase://127.0.0.1:12000/travel-sample", SourceAddress((Endpoint("127.0.0.1", 12000),), "travel-sample")),
        ("couchbase://[::1]:11210/b", SourceAddress((Endpoint("::1", 11210),), "b")),
        ("couchbase://h/a%2520b", SourceAddress((Endpoint("h", 11210),), "a%20b")),
        ("couchbase://h1,h2:1,[::1]/b", SourceAddress(endpoints(("h1", 11210), ("h2", 1), ("::1", 11210)), "b")),
        ("couchbase://h/b?network=external", SourceAddress((Endpoint("h", 11210),), "b", "external")),
        ("couchbases://h,h:1/b", SourceAddress(endpoints(("h", 11207), ("h", 1)), "b", tls=TlsOptions())),
    ],
)
def test_a_url_names_nodes_and_bucket(url: str, address: SourceAddress) -> None:
    assert parse_source_url(url) == address


def test_tls_is_as_the_caller_says() -> None:
    options = TlsOptions(ca_file="ca.pem")
    assert parse_source_url("couchbases://h/b", options).tls == options
    assert parse_source_url("couchbase://h/b", options).tls is None


@pytest.mark.parametrize(
    "url",
    [
        "",
        "default",
        "http://h/b",
        "couchbase:///b",
        "couchbase://h",
        "couchbase://h/",
        "couchbase://h/a/b",
        "couchbase://h,/b",
        "couchbase://h:0/b",
        "couchbase://h:70000/b",
        "couchbase://h:port/b",
        "couchbase://h/b?network=",
        "couchbase://h/b?timeout=3",
        "couchbase://h/b#c",
        "couchbase://[::1/b",
    ],
)
def test_anything_else_is_refused_by_name(url: str) -> None:
    with pytest.raises(ConfigInvalid, match=r"source\.url"):
        parse_source_url(url)


def test_a_password_in_the_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigInvalid, match=r"source\.password") as caught:
        parse_source_url("couchbase://user:secret@h/b")
    assert "secret" not in str(caught.value)


@given(st.text())
def test_no_text_raises_anything_else(text: str) -> None:
    with suppress(ConfigInvalid):
        parse_source_url("couchbase://" + text)


@pytest.mark.parametrize("url", ["couchbase://h:11210/b", "couchbases://[::1]:1,h:2/b"])
def test_an_address_prints_as_its_url(url: str) -> None:
    assert str(parse_source_url(url)) == url
