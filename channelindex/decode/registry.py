"""Finds the decoder that the configuration names."""

import struct
from collections.abc import Callable
from importlib import import_module
from typing import Any

from channelindex.blocks import MAX_KEY_BYTES, pack_rev
from channelindex.decode.base import MAX_CHANNEL_BYTES, MAX_CHANNELS, Decoder, Undecodable
from channelindex.decode.sync_gateway import SyncGatewayDecoder
from channelindex.errors import ConfigInvalid
from channelindex.model import Principal, Route

SYNC_GATEWAY = "sync_gateway"


def make_decoder(name: str, *, star_channel: bool) -> Decoder:
    """The decoder called *name*: "sync_gateway", or "package.module:factory" for one of the user's own.

    A factory is called with the keyword `star_channel` and returns a `channelindex.decode.base.Decoder`. Whether its
    routes hold the channel `*` is then its own affair. What it answers is checked: a route that cannot be indexed is
    an undecodable document, not a crash of the process that packs it.

    Raises:
        ConfigInvalid: there is no such decoder, or its factory fails.
    """
    factory = SyncGatewayDecoder if name == SYNC_GATEWAY else _imported(name)
    try:
        decoder: Decoder = factory(star_channel=star_channel)
    except Exception as error:
        raise _invalid(name, f"the factory raised {type(error).__name__}: {error}") from error
    if not callable(getattr(decoder, "decode", None)):
        raise _invalid(name, f"the factory returned a {type(decoder).__name__}, which has no method decode")
    return decoder if name == SYNC_GATEWAY else _Checked(decoder)


class _Checked:
    """A decoder of the user's own, each of whose answers is one that can be indexed."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    def decode(self, kind: int, key: bytes, datatype: int, value: bytes) -> Route | Principal | None:
        """See `Decoder.decode`."""
        decoded = self._decoder.decode(kind, key, datatype, value)
        if isinstance(decoded, Route):
            _check(decoded)
        elif isinstance(decoded, Principal):
            _check_principal(decoded)
        elif decoded is not None:
            raise Undecodable(f"the decoder returned a {type(decoded).__name__}, not a Route, Principal or None")
        return decoded


def _check(route: Route) -> None:
    """Raise Undecodable where *route* has a type or size that the index has no place for."""
    try:
        if len(route.channels) > MAX_CHANNELS:
            raise Undecodable(f"{len(route.channels)} channels, at most {MAX_CHANNELS} can be indexed")
        for channel, removal in route.channels.items():
            if len(channel.encode()) > MAX_CHANNEL_BYTES:
                raise Undecodable(f"channel name longer than {MAX_CHANNEL_BYTES} bytes")
            if removal is not None:
                pack_rev(removal.rev)
                struct.pack(">Q?", removal.sequence, removal.deleted)
        pack_rev(route.rev)
        struct.pack(">QH", route.sequence, route.flags)
    except (AttributeError, TypeError, ValueError, struct.error) as error:
        raise Undecodable(f"the decoder's route cannot be indexed: {error}") from None


def _check_principal(principal: Principal) -> None:
    """Raise Undecodable where the key is none, or too long to travel to the index."""
    try:
        n_bytes = len(principal.key.encode())
    except (AttributeError, ValueError) as error:
        raise Undecodable(f"the decoder's principal cannot be counted: {error}") from None
    if n_bytes > MAX_KEY_BYTES:
        raise Undecodable(f"the decoder's principal has a key of {n_bytes} bytes, at most {MAX_KEY_BYTES} are possible")


def _imported(name: str) -> Callable[..., Any]:
    module_name, _, factory_name = name.partition(":")
    if not module_name or not factory_name:
        raise _invalid(name, f'expected "{SYNC_GATEWAY}" or "package.module:factory"')
    try:
        factory = getattr(import_module(module_name), factory_name)
    except Exception as error:
        raise _invalid(name, f"{type(error).__name__}: {error}") from error
    if not callable(factory):
        raise _invalid(name, f"{factory_name} is a {type(factory).__name__}, not a function or class")
    result: Callable[..., Any] = factory
    return result


def _invalid(name: str, reason: str) -> ConfigInvalid:
    return ConfigInvalid(f'source.decoder = "{name}": {reason}')
