"""Chooses the collections of a stream, and replaces the collection's number before each key.

On a connection that knows collections every key begins with the number of its collection in LEB128. It is taken off
here and in the parser, and put on in `kv`; nothing else knows of it. Source: couchbase/kv_engine docs/Collections.md.
"""

import struct
from collections.abc import Sequence

import msgspec

from channelindex.errors import ConfigInvalid, ProtocolError, SourceUnavailable
from channelindex.feeds.dcp.exchange import Conversation, Request, refusal
from channelindex.mcbp import Frame, Op, Status, pack_leb128, split_leb128

DEFAULT_COLLECTION = 0
_WHOLE_SCOPE = "*"
_COLLECTION_CREATED = 0
_CREATED = struct.Struct(">QII")  # manifest, scope, collection; what follows does not matter


class _Collection(msgspec.Struct):
    name: str
    uid: str


class _Scope(msgspec.Struct):
    name: str
    uid: str
    collections: list[_Collection] = []


class _Manifest(msgspec.Struct):
    scopes: list[_Scope]


class CollectionMissing(SourceUnavailable):
    """A collection of `source.collections` is not there, or not yet: it is looked up until it is."""


class Keyspace:
    """The collections of a stream, by number. Without any the connection knows nothing of collections.

    Of one collection, keys come plain. Of several they come as `scope.collection/key`, because two collections may
    hold the same key. With *scope*, collections that are created later come too.
    """

    def __init__(self, name_by_id: dict[int, str], scope: tuple[int, str] | None = None) -> None:
        self._name_by_id = name_by_id
        self._scope = scope
        self.several = scope is not None or len(name_by_id) > 1
        self.only_id = None if self.several else next(iter(name_by_id), None)
        """The number of the only collection, if there is one."""
        self.prefix = b"" if self.only_id is None else pack_leb128(self.only_id)
        assert not (self.several and self.prefix), "of several collections, each key says which"
        """The prefix of each key where there is only one collection."""

    @property
    def stream_filter(self) -> bytes:
        """The value of a stream request."""
        if self._scope is not None:
            return msgspec.json.encode({"scope": f"{self._scope[0]:x}"})
        if not self._name_by_id:
            return b""
        return msgspec.json.encode({"collections": [f"{number:x}" for number in sorted(self._name_by_id)]})

    def qualified(self, key: bytes) -> bytes:
        """The *key* of a document of one of several collections, with their names in place of the number."""
        number, plain = split_leb128(key) or (DEFAULT_COLLECTION, key)
        return f"{self._name_by_id.get(number, f'0x{number:x}')}/".encode() + plain

    def learn(self, event: Frame) -> None:
        """Record the name of a collection that a system event announces."""
        if self._scope is None or len(event.extras) < 12 or len(event.value) < _CREATED.size:
            return
        if int.from_bytes(event.extras[8:12], "big") == _COLLECTION_CREATED:
            _, _, number = _CREATED.unpack_from(event.value)
            self._name_by_id[number] = f"{self._scope[1]}.{event.key.decode('utf-8', 'replace')}"


NO_COLLECTIONS = Keyspace({})
DEFAULT_ONLY = Keyspace({DEFAULT_COLLECTION: "_default._default"})


def find_keyspace(requested: Sequence[str], *, granted: bool) -> Conversation[Keyspace]:
    """Look up the collections *requested* (`SourceAddress.collections`). *granted*: the server knows collections.

    The default collection is asked for by name too where it can be: the server then reports the seqnos of all others.

    Raises:
        ConfigInvalid: the server has no collections.
        CollectionMissing: one of them is not there, or not yet.
    """
    if not requested:
        return DEFAULT_ONLY if granted else NO_COLLECTIONS
    if not granted:
        raise ConfigInvalid(
            f"source.collections = {','.join(requested)!r}: the server of source.url knows no collections"
        )
    answer = yield Request(Op.COLLECTIONS_GET_MANIFEST)
    if answer.status != Status.SUCCESS:
        raise refusal(answer)
    try:
        scopes = {scope.name: scope for scope in msgspec.json.decode(answer.value, type=_Manifest).scopes}
        return _keyspace(scopes, requested)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise ProtocolError(f"the collections' manifest cannot be read: {error}") from error


def _keyspace(scopes: dict[str, _Scope], requested: Sequence[str]) -> Keyspace:
    name_by_id: dict[int, str] = {}
    for name in requested:
        scope_name, _, collection = name.partition(".")
        scope = scopes.get(scope_name, _Scope(scope_name, ""))
        numbers = {each.name: int(each.uid, 16) for each in scope.collections}
        if collection == _WHOLE_SCOPE and scope.uid:
            names = {number: f"{scope_name}.{each}" for each, number in numbers.items()}
            return Keyspace(names, (int(scope.uid, 16), scope_name))
        if collection not in numbers:
            raise CollectionMissing(
                f"source.collections = {','.join(requested)!r}: the bucket of source.url has no collection {name!r}, "
                "or not yet"
            )
        name_by_id[numbers[collection]] = name
    return Keyspace(name_by_id)
