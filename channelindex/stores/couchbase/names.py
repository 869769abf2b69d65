"""The lists of channel names, by which all channels are found without a query service.

A list is only ever appended to. A name is in it before the channel has anything else, and may be in it more than once.
"""

import struct
from collections.abc import Iterable, Iterator

from channelindex.errors import IndexCorrupt
from channelindex.stores.couchbase.keys import Keys
from channelindex.stores.couchbase.link import Link, append_or_create

_LENGTH = struct.Struct(">I")

_LISTS_PER_READ = 64
"""A list has a thousandth of all names."""


def add_names(link: Link, keys: Keys, channels: Iterable[str]) -> None:
    """Put *channels* into their lists."""
    records: dict[str, bytes] = {}
    for channel in channels:
        name = channel.encode()
        key = keys.list_of(channel)
        records[key] = records.get(key, b"") + _LENGTH.pack(len(name)) + name
    append_or_create(link, records)


def iter_names(link: Link, keys: Keys) -> Iterator[str]:
    """The names in all lists, each once.

    Raises:
        IndexCorrupt: a list is damaged.
    """
    for start in range(0, len(keys.lists), _LISTS_PER_READ):
        chunk = keys.lists[start : start + _LISTS_PER_READ]
        for key, stored in zip(chunk, link.get(chunk), strict=True):
            if stored is not None:
                yield from _names_in(stored.value, key)


def _names_in(stored: bytes, key: str) -> Iterator[str]:
    names: set[str] = set()
    offset = 0
    while offset < len(stored):
        try:
            (size,) = _LENGTH.unpack_from(stored, offset)
            name = stored[offset + _LENGTH.size : offset + _LENGTH.size + size].decode()
        except (struct.error, UnicodeDecodeError) as error:
            raise IndexCorrupt(f"{key}: byte {offset}: {error}") from error
        offset += _LENGTH.size + size
        if offset > len(stored):
            raise IndexCorrupt(f"{key}: the last name ends {offset - len(stored)} bytes after the list")
        names.add(name)
    return iter(names)
