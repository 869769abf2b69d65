"""Documents that Go's parser takes and ours does not are indexed as Sync Gateway indexes them."""

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channelindex.decode.base import Undecodable
from channelindex.decode.sync_gateway import SyncGatewayDecoder
from channelindex.decode.tolerant_json import MAX_DEPTH, find_member, repaired
from channelindex.feeds.base import JSON, MUTATION, XATTR
from channelindex.mcbp import join_xattrs
from channelindex.model import Removal, Route

DECODER = SyncGatewayDecoder(star_channel=False)
SYNC = b'{"rev":"1-a","sequence":7,"channels":{"A":null}}'
DEEP_SYNC = b'{"history":%s%s,' % (b"[" * MAX_DEPTH, b"]" * MAX_DEPTH) + SYNC[1:]
ROUTE = Route("1-a", 0, 7, {"A": None})


def decode(body: bytes) -> Any:
    return DECODER.decode(MUTATION, b"doc", JSON, body)


def decode_attribute(text: bytes) -> Any:
    return DECODER.decode(MUTATION, b"doc", JSON | XATTR, join_xattrs([("_sync", text)], b"{}"))


def nested(depth: int, before: bytes = b"", sync: bytes = SYNC) -> bytes:
    """An object whose member beside `_sync` makes it *depth* deep."""
    return b'{%s"x":%s%s,"_sync":%s}' % (before, b"[" * (depth - 1), b"]" * (depth - 1), sync)


@pytest.mark.parametrize(
    "text", [rb"\ud800", rb"\udfff", rb"\uDC00\uD800", rb"a\ud83d", b"\xff", b"\xed\xa0\x80", b"\xc3("]
)
def test_text_that_is_no_unicode_beside_the_metadata_does_not_matter(text: bytes) -> None:
    assert decode(b'{"x":"%s","%s":["%s"],"_sync":%s}' % (text, text, text, SYNC)) == ROUTE


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (rb"\ud800", "\ufffd"),
        (rb"\ud800\u0041", "\ufffdA"),
        (rb"\udc00\ud800", "\ufffd\ufffd"),
        (rb"\ud83d\ude00", "\U0001f600"),
        (rb"\\ud800", r"\ud800"),
        (rb"\ud800\n", "\ufffd\n"),
        (b"\xff", "\ufffd"),
        (b"\xed\xa0\x80", "\ufffd" * 3),  # a surrogate as UTF-8 would have it: each byte for itself
        (b"\xe2\x82", "\ufffd" * 2),
    ],
)
def test_a_channel_that_is_no_unicode_is_the_one_that_go_makes_of_it(written: bytes, read: str) -> None:
    sync = b'{"rev":"1-a","sequence":7,"channels":{"%s":null,"bad \\ud800":{"seq":7,"rev":"1-a"}}}' % written
    removed = {"bad \ufffd": Removal(7, "1-a", deleted=False)}
    for route in (decode(b'{"_sync":%s}' % sync), decode_attribute(sync)):
        assert route == Route("1-a", 0, 7, {read: None, **removed})


@pytest.mark.parametrize("depth", [2, 500, 999, 1_000, 1_001, 5_000, MAX_DEPTH])
def test_nesting_beside_the_metadata_does_not_matter(depth: int) -> None:
    assert decode(nested(depth)) == ROUTE
    before = sys.getrecursionlimit()
    assert decode(nested(depth, before=b'"_sync":{"rev":"0-old"},')) == ROUTE
    assert sys.getrecursionlimit() == before


@pytest.mark.parametrize("name", [rb"\u005fsync", rb"\u005F\u0073\u0079\u006E\u0063", rb"_syn\u0063"])
@pytest.mark.parametrize("beside", [rb'"\ud800"', b"1", b"[" * 2_000 + b"]" * 2_000])
def test_a_name_with_escapes_is_the_same_name(name: bytes, beside: bytes) -> None:
    assert decode(b'{"x":%s,"%s":%s}' % (beside, name, SYNC)) == ROUTE


def test_other_names_are_no_metadata() -> None:
    for name in (rb"\u005esync", rb"\\u005fsync", b"_SYNC", b"_sync2", rb"_\u0053ync"):
        assert decode(rb'{"x":"\ud800","%s":%s}' % (name, SYNC)) is None


@pytest.mark.parametrize("depth", [1_001, 5_000, MAX_DEPTH - 2])
def test_nesting_in_a_field_of_the_metadata_that_is_not_read_does_not_matter(depth: int) -> None:
    sync = b'{"history":%s%s,' % (b"[" * depth, b"]" * depth) + SYNC[1:]
    assert decode_attribute(sync) == ROUTE
    assert decode(b'{"_sync":%s}' % sync) == ROUTE


@pytest.mark.parametrize(
    "read", [lambda: decode(nested(MAX_DEPTH + 1)), lambda: decode_attribute(DEEP_SYNC)], ids=["body", "attribute"]
)
def test_nesting_that_go_refuses_is_undecodable_or_does_not_matter(read: Callable[[], Any]) -> None:
    """From Python 3.14 on msgspec goes by the C stack, and takes it. Sync Gateway, in Go, writes no such document."""
    if sys.version_info >= (3, 14):
        assert read() == ROUTE
    else:
        with pytest.raises(Undecodable, match="too deep"):
            read()


def test_nesting_that_no_parser_takes_is_undecodable() -> None:
    with pytest.raises(Undecodable, match="too deep"):
        decode(nested(2_000_000))


def test_null_is_nothing() -> None:
    removal = b'{"seq":null,"rev":null,"del":null}'
    sync = b'{"rev":"1-a","sequence":null,"flags":null,"deleted":null,"channels":{"A":%s}}' % removal
    for route in (decode(b'{"_sync":%s}' % sync), decode_attribute(sync)):
        assert route == Route("1-a", 0, 0, {"A": Removal(0, "", deleted=False)})
    with pytest.raises(Undecodable, match="missing or empty"):
        decode(b'{"_sync":{"rev":null}}')
    with pytest.raises(Undecodable, match="missing or empty"):
        decode(b'{"_sync":{"rev":{"rev":null}}}')


@pytest.mark.parametrize(
    "deep",
    [
        b'{"x":%s,"_sync":%s' % (b"[" * 2_000 + b"]" * 2_000, SYNC),
        b'{"x":%s,"_sync":%s}}' % (b"[" * 2_000 + b"]" * 2_000, SYNC),
        b'{"x":%s,"_sync":%s}' % (b"[" * 2_000 + b"}" * 2_000, SYNC),
        b'{"x":%s,"_sync":%s}' % (b"[" * 2_000 + b'"]' * 2_000, SYNC),
        b'{"x":%s,"_sync":}' % (b"[" * 2_000 + b"]" * 2_000),
        b'{"x":%s,"_sync"}' % (b"[" * 2_000 + b"]" * 2_000),
    ],
)
def test_a_deep_document_that_is_not_whole_is_undecodable(deep: bytes) -> None:
    with pytest.raises(Undecodable):
        decode(deep)


# -- the scanner against Python's parser

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
OBJECTS = st.dictionaries(st.sampled_from(["_sync", "a", 'quo"te', "\\\\"]) | st.text(max_size=5), VALUES, max_size=5)


@given(OBJECTS, st.booleans(), st.sampled_from([None, 1]))
def test_the_scanner_finds_what_a_parser_finds(document: dict[str, Any], ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(document, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass")
    for name in (*document, "_sync", "absent"):
        found = find_member(text, name)
        if name not in document:
            assert found is None
        else:
            assert found is not None
            assert json.loads(found) == document[name]


@given(OBJECTS, st.data())
def test_damage_is_an_error_or_leaves_a_whole_member(document: dict[str, Any], data: st.DataObject) -> None:
    text = bytearray(json.dumps({**document, "_sync": {"rev": "1-a"}}).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
        if not text:
            return
    with suppress(ValueError):
        find_member(bytes(text), "_sync")


@given(st.binary(max_size=30))
def test_whatever_is_repaired_is_unicode_and_what_was_is_left_alone(text: bytes) -> None:
    repaired(text).decode()
    try:
        text.decode()
    except UnicodeDecodeError:
        return
    if rb"\u" not in text:
        assert repaired(text) == text
