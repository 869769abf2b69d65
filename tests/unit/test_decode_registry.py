"""The decoder that the configuration names."""

from typing import Any

import pytest

from channelindex.decode.base import MAX_CHANNELS, Undecodable
from channelindex.decode.registry import make_decoder
from channelindex.decode.sync_gateway import SyncGatewayDecoder
from channelindex.errors import ConfigInvalid
from channelindex.feeds.base import JSON, MUTATION
from channelindex.model import Principal, Removal, Route

VALUE = b'{"_sync":{"rev":"1-a","channels":{"A":null}}}'
HERE = __name__


class ByFirstByte:
    """A routing function of the user's own."""

    def __init__(self, star_channel: bool) -> None:
        self.star_channel = star_channel

    def decode(self, kind: int, key: bytes, datatype: int, value: bytes) -> Route:
        return Route("1-x", 0, 0, {key[:1].decode(): None})


class Scripted:
    """Answers what the test asks it to."""

    answer: object = None

    def __init__(self, star_channel: bool) -> None:
        pass

    def decode(self, kind: int, key: bytes, datatype: int, value: bytes) -> object:
        return self.answer


def broken(star_channel: bool) -> object:
    raise RuntimeError("no such database")


def without_decode(star_channel: bool) -> object:
    return object()


def no_arguments() -> object:
    return ByFirstByte(True)


@pytest.mark.parametrize("star_channel", [True, False])
def test_sync_gateway_decoder_honours_the_star_channel(star_channel):
    decoder = make_decoder("sync_gateway", star_channel=star_channel)
    assert isinstance(decoder, SyncGatewayDecoder)
    route = decoder.decode(MUTATION, b"doc", JSON, VALUE)
    assert isinstance(route, Route)
    assert ("*" in route.channels) is star_channel


def test_own_decoder_is_made_by_its_factory():
    decoder = make_decoder(f"{HERE}:ByFirstByte", star_channel=False)
    assert decoder.decode(MUTATION, b"doc", JSON, VALUE) == Route("1-x", 0, 0, {"d": None})


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "expected"),
        ("sync-gateway", "expected"),
        ("module.only:", "expected"),
        (":factory", "expected"),
        ("no_such_package.module:factory", "No module named 'no_such_package'"),
        (".relative:factory", "TypeError"),
        (f"{HERE}:missing", "missing"),
        (f"{HERE}:VALUE", "not a function"),
        (f"{HERE}:broken", "RuntimeError: no such database"),
        (f"{HERE}:no_arguments", "star_channel"),
        (f"{HERE}:without_decode", "no method decode"),
    ],
)
def test_bad_name_is_a_configuration_error_that_names_the_setting(name, reason):
    with pytest.raises(ConfigInvalid) as caught:
        make_decoder(name, star_channel=True)
    assert f'source.decoder = "{name}"' in str(caught.value)
    assert reason in str(caught.value)


def route(*fields: Any) -> Route:
    return Route(*fields)


def principal(key: Any) -> Principal:
    return Principal(key, "user", "", "")


@pytest.mark.parametrize(
    "answer",
    [
        "a string",
        route("1-x", 0, 0, {b"bytes": None}),
        route("1-x", 0, 0, {"\ud800": None}),
        route("1-x", 0, 0, {"c" * 70_000: None}),
        route("1-x", 1 << 16, 0, {"a": None}),
        route("1-x", 0, -1, {"a": None}),
        route("r" * 300, 0, 0, {"a": None}),
        route(7, 0, 0, {"a": None}),
        route("1-x", 0, 0, {"a": Removal(1, "r" * 300, False)}),
        route("1-x", 0, 0, {"a": "removed"}),
        route("1-x", 0, 0, None),
        route("1-x", 0, 0, dict.fromkeys(map(str, range(MAX_CHANNELS + 1)))),
        principal("k" * 256),
        principal("\ud800"),
        principal(7),
    ],
)
def test_what_cannot_be_indexed_is_an_undecodable_document(monkeypatch, answer):
    monkeypatch.setattr(Scripted, "answer", answer)
    decoder = make_decoder(f"{HERE}:Scripted", star_channel=False)
    with pytest.raises(Undecodable):
        decoder.decode(MUTATION, b"doc", JSON, VALUE)
