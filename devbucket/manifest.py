"""The collections of a bucket: their manifest, and which of their documents a stream wants. No I/O.

In a bucket that has collections every key inside the server begins with the number of its collection in LEB128, as on
the wire. Source: couchbase/kv_engine docs/Collections.md and dcp/documentation/commands/stream-request-value.md.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import orjson

from channelindex.errors import ConfigInvalid
from channelindex.mcbp import Status, pack_leb128, split_leb128
from devbucket.replies import Malformed, Refused

DEFAULT = 0
SYSTEM = 1
"""The collection of system events, which no client reaches."""

FIRST_ID = 8
DEFAULT_NAME = "_default"

COLLECTION_BEGINS = 0
SCOPE_BEGINS = 3


class CollectionEvent(NamedTuple):
    """The beginning of a scope or collection. `number` is its id, `scope` that of its scope."""

    kind: int
    number: int
    scope: int
    name: str
    manifest: int

    def key(self) -> bytes:
        """Return the key under which a vbucket keeps it."""
        return pack_leb128(SYSTEM) + bytes([self.kind]) + self.number.to_bytes(4, "big") + self.name.encode()

    def value(self) -> bytes:
        """Return what is sent of it, in version 0 of its format."""
        ids = (self.scope, self.number) if self.kind == COLLECTION_BEGINS else (self.number,)
        return self.manifest.to_bytes(8, "big") + b"".join(number.to_bytes(4, "big") for number in ids)


def event_of(key: bytes) -> tuple[int, int, bytes]:
    """Kind, number and name of the event that is kept under *key*."""
    assert key[0] == SYSTEM, "it is kept under a key of the system's"
    return key[1], int.from_bytes(key[2:6], "big"), key[6:]


KeyFilter = Callable[[bytes], bool]
"""Decides if a stream has what is under a key."""


class CollectionManifest:
    """The scopes and collections of a bucket. A number is never given out twice."""

    def __init__(self) -> None:
        self.manifest_uid = 0
        self.paths: list[str] = []
        self._scope_by_name = {DEFAULT_NAME: DEFAULT}
        self._scope_of: dict[int, int] = {DEFAULT: DEFAULT}
        self._names: dict[int, str] = {DEFAULT: DEFAULT_NAME}
        self._next_id = FIRST_ID

    def create(self, path: str) -> list[CollectionEvent]:
        """Create the collection *path* (`scope.collection`), and its scope if that is new; what vbuckets have to keep.

        Raises:
            ConfigInvalid: it is there, or is no such name.
        """
        scope_name, _, name = path.partition(".")
        if not scope_name or not name or "." in name:
            raise ConfigInvalid(f"{path!r} is not scope.collection")
        if self.number_of(path) is not None:
            raise ConfigInvalid(f"the collection {path!r} is there already")
        self.manifest_uid += 1
        self.paths.append(path)
        events = [] if scope_name in self._scope_by_name else [self._create_scope(scope_name)]
        scope, number = self._scope_by_name[scope_name], self._take_id()
        assert number not in self._scope_of, "a number is never given out twice"
        self._scope_of[number], self._names[number] = scope, name
        return [*events, CollectionEvent(COLLECTION_BEGINS, number, scope, name, self.manifest_uid)]

    def drop(self, path: str) -> None:
        """Drop the collection *path*: its number means nothing from now on. Its scope stays.

        Raises:
            ConfigInvalid: it is not there, or is the default one.
        """
        number = self.number_of(path)
        if number is None or path not in self.paths:
            raise ConfigInvalid(f"there is no collection {path!r} to drop")
        self.manifest_uid += 1
        self.paths.remove(path)
        del self._scope_of[number], self._names[number]

    def _create_scope(self, name: str) -> CollectionEvent:
        number = self._scope_by_name[name] = self._take_id()
        return CollectionEvent(SCOPE_BEGINS, number, number, name, self.manifest_uid - 1)

    def _take_id(self) -> int:
        self._next_id += 1
        return self._next_id - 1

    def number_of(self, path: str) -> int | None:
        """Return the number of the collection `scope.collection`; an empty name means the default one."""
        scope_name, _, name = path.partition(".")
        scope = self._scope_by_name.get(scope_name or DEFAULT_NAME)
        sought = name or DEFAULT_NAME
        return next(
            (number for number, holder in self._scope_of.items() if holder == scope and self._names[number] == sought),
            None,
        )

    def knows(self, number: int) -> bool:
        """Return whether there is a collection of that number."""
        return number in self._scope_of

    def to_json(self) -> bytes:
        """Return the manifest as JSON; numbers in it are hexadecimal texts."""
        scopes = [
            {"name": name, "uid": f"{number:x}", "collections": list(self._collections_of(number))}
            for name, number in self._scope_by_name.items()
        ]
        return orjson.dumps({"uid": f"{self.manifest_uid:x}", "scopes": scopes})

    def _collections_of(self, scope: int) -> Iterator[dict[str, str]]:
        return (
            {"name": self._names[number], "uid": f"{number:x}"}
            for number, holder in self._scope_of.items()
            if holder == scope
        )

    def filter_of(self, value: bytes) -> KeyFilter | None:
        """Return what a stream request's value asks for; None for everything.

        Raises:
            Malformed, Refused: the value makes no sense, or names what is not there.
        """
        if not value:
            return None
        try:
            asked = orjson.loads(value)
        except orjson.JSONDecodeError as error:
            raise Malformed from error
        if not isinstance(asked, dict) or ("collections" in asked and "scope" in asked):
            raise Refused(Status.EINVAL)
        if "scope" in asked:
            return self._filter_of_scope(_number(asked["scope"]))
        return self._filter_of(asked["collections"]) if "collections" in asked else None

    def _filter_of(self, texts: Any) -> KeyFilter:
        if not isinstance(texts, list):
            raise Refused(Status.EINVAL)
        numbers = {_number(text) for text in texts}
        if not numbers <= self._scope_of.keys():
            raise Refused(Status.UNKNOWN_COLLECTION, self.unknown_context())
        return lambda key: _collection_at(key) in numbers

    def _filter_of_scope(self, scope: int) -> KeyFilter:
        if scope not in self._scope_by_name.values():
            raise Refused(Status.UNKNOWN_SCOPE, self.unknown_context())

        def selects(key: bytes) -> bool:
            number = _collection_at(key)
            return number == ~scope or self._scope_of.get(number) == scope

        return selects

    def unknown_context(self) -> bytes:
        """Return the context for a client that names something unknown: its manifest may be older, or newer."""
        return orjson.dumps({"manifest_uid": f"{self.manifest_uid:x}"})


def default_only(key: bytes) -> bool:
    """Return what a client wants that knows no collections."""
    return key[0] == DEFAULT


def _collection_at(key: bytes) -> int:
    """Return the collection that *key* is in, or that its event is about; of a scope's event the inverse."""
    number, _ = split_key(key)
    if number != SYSTEM:
        return number
    kind, concerned, _ = event_of(key)
    return concerned if kind == COLLECTION_BEGINS else ~concerned


def _number(text: Any) -> int:
    try:
        return int(text, 16)
    except (TypeError, ValueError) as error:
        raise Refused(Status.EINVAL) from error


def split_key(key: bytes) -> tuple[int, bytes]:
    """Split *key* into its collection's number and the rest.

    Raises:
        Malformed: it begins with no number.
    """
    found = split_leb128(key)
    if found is None:
        raise Malformed
    return found
