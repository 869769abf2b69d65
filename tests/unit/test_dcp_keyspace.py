"""Collections: which are streamed, and what becomes of their numbers before keys."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from channelindex.errors import ConfigInvalid, ProtocolError, SourceUnavailable
from channelindex.feeds.dcp.keyspace import Keyspace, find_keyspace
from channelindex.mcbp import REQUEST, RESPONSE, Frame, Op, Status, pack_leb128, split_leb128

MANIFEST = {
    "uid": "b",
    "scopes": [
        {"name": "_default", "uid": "0", "collections": [{"name": "_default", "uid": "0"}]},
        {"name": "shop", "uid": "8", "collections": [{"name": "orders", "uid": "9"}, {"name": "carts", "uid": "1ff"}]},
        {"name": "empty", "uid": "a"},
    ],
}


def found(wanted: Sequence[str], manifest: Any = MANIFEST, status: int = Status.SUCCESS) -> Keyspace:
    conversation = find_keyspace(wanted, granted=True)
    request = next(conversation)
    assert request.opcode == Op.COLLECTIONS_GET_MANIFEST
    value = manifest if isinstance(manifest, bytes) else msgspec.json.encode(manifest)
    with pytest.raises(StopIteration) as finished:
        conversation.send(Frame(RESPONSE, request.opcode, status, 0, 0, 0, b"", b"", value))
    keyspace: Keyspace = finished.value.value
    return keyspace


def asked_nothing(wanted: Sequence[str], *, granted: bool) -> Keyspace:
    with pytest.raises(StopIteration) as finished:
        next(find_keyspace(wanted, granted=granted))
    keyspace: Keyspace = finished.value.value
    return keyspace


def test_without_names_it_is_the_default_collection_where_the_server_knows_it() -> None:
    keyspace = asked_nothing((), granted=True)
    assert (keyspace.stream_filter, keyspace.prefix, keyspace.only_id) == (b'{"collections":["0"]}', b"\0", 0)


def test_a_server_without_collections_streams_as_ever() -> None:
    keyspace = asked_nothing((), granted=False)
    assert (keyspace.stream_filter, keyspace.prefix, keyspace.only_id) == (b"", b"", None)
    with pytest.raises(ConfigInvalid, match=r"source\.collections = 'shop\.orders'"):
        next(find_keyspace(("shop.orders",), granted=False))


def test_one_collection_has_a_prefix_of_one_length() -> None:
    keyspace = found(["shop.carts"])
    assert (keyspace.stream_filter, keyspace.prefix) == (b'{"collections":["1ff"]}', b"\xff\x03")
    assert not keyspace.several


def test_several_collections_are_distinguished_by_name() -> None:
    keyspace = found(["shop.carts", "shop.orders"])
    assert keyspace.stream_filter == b'{"collections":["9","1ff"]}'
    assert (keyspace.prefix, keyspace.only_id, keyspace.several) == (b"", None, True)
    assert keyspace.qualified(b"\x09k") == b"shop.orders/k"
    assert keyspace.qualified(b"\xff\x03k") == b"shop.carts/k"
    assert keyspace.qualified(b"\x07k") == b"0x7/k"


def created(name: bytes, number: int, kind: int = 0, value: bytes | None = None) -> Frame:
    body = (5).to_bytes(8, "big") + (8).to_bytes(4, "big") + number.to_bytes(4, "big") if value is None else value
    extras = (77).to_bytes(8, "big") + kind.to_bytes(4, "big") + b"\0"
    return Frame(REQUEST, Op.DCP_SYSTEM_EVENT, 0, 0, 0, 0, extras, name, body)


def test_a_scope_learns_of_collections_that_are_created_later() -> None:
    keyspace = found(["shop.*"])
    assert keyspace.stream_filter == b'{"scope":"8"}'
    keyspace.learn(created(b"returns", 0x20))
    keyspace.learn(created(b"gone", 0x21, kind=1))
    keyspace.learn(created(b"short", 0x22, value=b"x"))
    assert keyspace.qualified(b"\x20k") == b"shop.returns/k"
    assert keyspace.qualified(b"\x21k") == b"0x21/k"
    assert keyspace.qualified(b"\x22k") == b"0x22/k"


def test_a_single_collection_does_not_learn_others() -> None:
    keyspace = found(["shop.orders"])
    keyspace.learn(created(b"returns", 0x20))
    assert keyspace.stream_filter == b'{"collections":["9"]}'


@pytest.mark.parametrize("name", ["shop.nosuch", "nosuch.orders", "nosuch.*", "empty.orders"])
def test_a_collection_that_is_not_there_may_come(name: str) -> None:
    with pytest.raises(SourceUnavailable, match=name.replace("*", ".")):
        found([name])


@pytest.mark.parametrize(
    "manifest", [b"", b"[]", b'{"scopes":[{"name":"shop","uid":"8","collections":[{"name":"o","uid":"x"}]}]}']
)
def test_a_manifest_that_is_none_breaks_the_protocol(manifest: bytes) -> None:
    with pytest.raises(ProtocolError, match="manifest"):
        found(["shop.o"], manifest)


def test_a_node_that_has_no_manifest_yet_is_asked_again() -> None:
    with pytest.raises(SourceUnavailable):
        found(["shop.orders"], b"", Status.NO_COLLECTIONS_MANIFEST)


@given(st.integers(0, 2**32 - 1), st.binary(max_size=10))
def test_numbers_come_off_as_they_were_put_on(number: int, key: bytes) -> None:
    assert split_leb128(pack_leb128(number) + key) == (number, key)


@given(st.binary(max_size=10))
def test_any_key_can_be_shown(key: bytes) -> None:
    Keyspace({8: "shop.orders", 9: "shop.carts"}).qualified(key)
