"""The channel index of a Couchbase bucket: what changed in these channels since I last looked?

    with channelindex.open_index("redis://10.0.0.21:6379/0") as index:
        changes = index.changes(["orders"], since=None, limit=100)

The names in `__all__` are the library; docs/library.md explains them, and says what else may be imported provisionally.
They are loaded when they are first used, so that `import channelindex` costs nothing and waits for no Redis client.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from channelindex.errors import (
        AuthenticationFailed,
        ChangesForgotten,
        ChannelIndexError,
        ConfigInvalid,
        ExtraMissing,
        IndexCorrupt,
        IndexMismatch,
        IndexMissing,
        ReaderClosed,
        StoreUnavailable,
        TokenAhead,
        TokenInvalid,
        Transient,
    )
    from channelindex.opening import open_async_index, open_index
    from channelindex.reading.async_reader import AsyncChangesReader
    from channelindex.reading.changes_reader import ChangesReader
    from channelindex.reading.keeping import TokenFile, TokenInRedis, TokenStore
    from channelindex.reading.paging import Change, Changes

__version__ = "0.2.0"
__all__ = [
    "AsyncChangesReader",
    "AuthenticationFailed",
    "Change",
    "Changes",
    "ChangesForgotten",
    "ChangesReader",
    "ChannelIndexError",
    "ConfigInvalid",
    "ExtraMissing",
    "IndexCorrupt",
    "IndexMismatch",
    "IndexMissing",
    "ReaderClosed",
    "StoreUnavailable",
    "TokenAhead",
    "TokenFile",
    "TokenInRedis",
    "TokenInvalid",
    "TokenStore",
    "Transient",
    "open_async_index",
    "open_index",
]
_MODULES = {
    "AsyncChangesReader": "reading.async_reader",
    "Change": "reading.paging",
    "Changes": "reading.paging",
    "ChangesReader": "reading.changes_reader",
    "TokenFile": "reading.keeping",
    "TokenInRedis": "reading.keeping",
    "TokenStore": "reading.keeping",
    "open_async_index": "opening",
    "open_index": "opening",
}
"""Modules that define the public names; the others are errors."""


def __getattr__(name: str) -> Any:
    """Load a public name when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
