"""Finds the decoder that the configuration names."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from channelindex.decode.base import Decoder
from channelindex.decode.sync_gateway import SyncGatewayDecoder
from channelindex.errors import ConfigInvalid

SYNC_GATEWAY = "sync_gateway"


def make_decoder(name: str, *, star_channel: bool) -> Decoder:
    """The decoder called *name*: "sync_gateway", or "package.module:factory" for one of the user's own.

    A factory is called once per process with the keyword `star_channel`, and returns a
    `channelindex.decode.base.Decoder`. Whether its routes hold the channel `*` is then its own affair.

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
    return decoder


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
