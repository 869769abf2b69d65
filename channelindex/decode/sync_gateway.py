"""Decodes the documents of Sync Gateway, all versions: `_sync` inline in the body or as an extended attribute.

Each mutation is decoded by its `_sync`, also where another program than Sync Gateway wrote the body and left
`_sync` as it was. Its revision then comes again at a later seqno, which readers see as the same revision; to skip it
instead could lose a revision for good, because the bucket may have deduplicated the write that it came with. The
foreign change itself is indexed when Sync Gateway imports it.

This is the hot path of the feed: one typed decode that skips whatever is not needed, and as few calls as can be.
"""

import struct
from typing import Annotated

import msgspec

from channelindex.blocks import MAX_REV_BYTES
from channelindex.decode import principals, tolerant_json
from channelindex.decode.base import MAX_CHANNEL_BYTES, MAX_CHANNELS, Undecodable
from channelindex.feeds.base import JSON, SNAPPY, XATTR
from channelindex.model import DELETED, REMOVED, STAR_CHANNEL, Principal, Removal, Route

_MAX_SEQUENCE = (1 << 64) - 1
_STORED_FLAGS = 0xFFFF & ~REMOVED
"""Entries store 16 bits of flags. Sync Gateway has 8; higher ones are dropped rather than the document with them.
REMOVED is a matter of each channel's entry, not of the revision."""

_SHORT_REV_CHARACTERS = MAX_REV_BYTES // 4
"""A revision id of no more is short enough in UTF-8, whatever it is."""

_Natural = Annotated[int, msgspec.Meta(ge=0)]


class _Version(msgspec.Struct, gc=False):
    """A revision id of Sync Gateway 4, whose other fields we do not need."""

    rev: str | None = ""


class _StoredRemoval(msgspec.Struct, gc=False):
    """The value in the `channels` map for a channel that the document left."""

    seq: _Natural | None = 0
    rev: str | _Version | None = ""
    deleted: bool | None = msgspec.field(name="del", default=False)


class _Sync(msgspec.Struct, gc=False):
    """The fields of `_sync` that matter; null is 0 or empty, as in Go. `deleted` is of the earliest versions."""

    rev: str | _Version | None = ""
    flags: _Natural | None = 0
    sequence: _Natural | None = 0
    channels: dict[str, _StoredRemoval | None] | None = None
    deleted: bool | None = False


class _InlineDocument(msgspec.Struct, gc=False):
    sync: _Sync | None = msgspec.field(name="_sync", default=None)


_decode_sync = msgspec.json.Decoder(_Sync).decode
_SYNC_FIELDS = [field.encode_name for field in msgspec.structs.fields(_Sync)]
_decode_document = msgspec.json.Decoder(_InlineDocument).decode
_read_u32 = struct.Struct(">I").unpack_from


class SyncGatewayDecoder:
    """A `channelindex.decode.base.Decoder`. With *star_channel*, every document is in the channel `*` too."""

    def __init__(self, star_channel: bool = True) -> None:
        self.star_channel = star_channel

    def decode(self, kind: int, key: bytes, datatype: int, value: bytes) -> Route | Principal | None:  # noqa: ARG002
        """See `Decoder.decode`. None: an internal key, a binary or foreign document, a deletion without metadata.

        Whether the revision is a deletion is for its metadata to say: *kind* does not matter.
        """
        if key[:1] == b"_" and principals.is_internal(key):
            return principals.principal_of(key)
        if not value or not datatype:
            return None
        sync = _inline_sync(value) if datatype == JSON else _attributed_sync(datatype, value)
        if sync is None:
            return None
        channels = _channels_of(sync, len(value))
        if self.star_channel:
            channels[STAR_CHANNEL] = None
        flags = (sync.flags or 0) & _STORED_FLAGS
        rev = sync.rev
        if type(rev) is not str or not 0 < len(rev) <= _SHORT_REV_CHARACTERS:
            rev = _rev_of(rev)
        return Route(rev, flags | DELETED if sync.deleted else flags, sync.sequence or 0, channels)

    def needs_body(self, key: bytes, datatype: int, value: bytes) -> bool:
        """Decide if the body of a JSON document matters, of which only the xattrs came.

        Not that of an internal document, whose key says all, and not where `_sync` is among the xattrs.
        """
        if datatype & XATTR and value[8:14] == b"_sync\0":
            return False  # it is the first of them: the hot path of a feed without bodies
        if key[:1] == b"_" and principals.is_internal(key):
            return False
        try:
            return not (datatype & XATTR and value) or _find_attribute(value)[0] is None
        except Undecodable:
            return False  # its body would not cure that


def _inline_sync(body: bytes) -> _Sync | None:
    try:
        return _decode_document(body).sync
    except (ValueError, RecursionError):
        if not (body.lstrip().startswith(b"{") and tolerant_json.names_sync(body)):
            return None  # whatever is wrong with it, it is none of ours
    try:
        return _tolerant_inline_sync(tolerant_json.repaired(body))
    except (ValueError, RecursionError) as error:
        raise Undecodable(f"document with inline _sync: {_reason(error)}") from None


def _tolerant_inline_sync(body: bytes) -> _Sync | None:
    try:
        return _decode_document(body).sync
    except RecursionError:
        text = tolerant_json.find_member(body, "_sync")
        return None if text is None or text == b"null" else _tolerant_sync(text)


def _tolerant_sync(text: bytes) -> _Sync:
    """Decode the metadata; where it nests too deep for the parser, without the fields that are not read."""
    try:
        return _decode_sync(text)
    except RecursionError:
        members = [(name, tolerant_json.find_member(text, name)) for name in _SYNC_FIELDS]
        return _decode_sync(
            b"{%s}" % b",".join(b'"%s":%s' % (name.encode(), value) for name, value in members if value)
        )


def _attributed_sync(datatype: int, value: bytes) -> _Sync | None:
    """`_sync` from the extended attributes, else from the body, of a value that is not plain JSON."""
    if datatype & SNAPPY:
        raise Undecodable("the value is marked as compressed, and cannot be decompressed")
    body_start = 0
    if datatype & XATTR:
        text, body_start = _find_attribute(value)
        if text is not None:
            return _sync_of_attribute(text)
    return _inline_sync(value[body_start:]) if datatype & JSON and len(value) > body_start else None


def _sync_of_attribute(text: bytes) -> _Sync:
    try:
        return _decode_sync(text)
    except (ValueError, RecursionError):
        pass
    try:
        return _tolerant_sync(tolerant_json.repaired(text))
    except (ValueError, RecursionError) as error:
        raise Undecodable(f"extended attribute _sync: {_reason(error)}") from None


def _find_attribute(value: bytes) -> tuple[bytes | None, int]:
    """The text of the attribute `_sync`, and where the body starts.

    The same format as `mcbp.split_xattrs` takes apart, without building what is not used.
    """
    if len(value) < 4:
        raise Undecodable(f"extended attributes need 4 bytes for their length, {len(value)} left")
    start, body_start = 4, 4 + _read_u32(value)[0]
    while start + 6 <= body_start <= len(value):  # the smallest pair: its length and two NULs
        end = start + 4 + _read_u32(value, start)[0]
        if not start + 6 <= end <= body_start or value[end - 1]:
            break
        if value[start + 4 : start + 10] == b"_sync\0":
            return value[start + 10 : end - 1], body_start
        start = end
    if start != body_start or body_start > len(value):
        raise Undecodable(f"extended attributes are malformed at byte {start} of {body_start}")
    return None, body_start


def _channels_of(sync: _Sync, value_size: int) -> dict[str, Removal | None]:
    if (sync.sequence or 0) > _MAX_SEQUENCE:
        raise Undecodable("_sync.sequence exceeds 64 bits")
    if not sync.channels:
        return {}
    if value_size > MAX_CHANNEL_BYTES:
        _check_sizes(sync.channels)
    if any(sync.channels.values()):
        return {name: None if removal is None else _removal(removal) for name, removal in sync.channels.items()}
    return sync.channels  # type: ignore[return-value]  # all values are None, and nobody else holds the map


def _check_sizes(channels: dict[str, _StoredRemoval | None]) -> None:
    if len(channels) > MAX_CHANNELS:
        raise Undecodable(f"{len(channels)} channels, at most {MAX_CHANNELS} can be indexed")
    longest = max(len(name.encode()) for name in channels)
    if longest > MAX_CHANNEL_BYTES:
        raise Undecodable(f"channel name of {longest} bytes, at most {MAX_CHANNEL_BYTES} can be indexed")


def _removal(removal: _StoredRemoval) -> Removal:
    sequence = removal.seq or 0
    if sequence > _MAX_SEQUENCE:
        raise Undecodable("the sequence of a removal exceeds 64 bits")
    return Removal(sequence, _text_of(removal.rev), bool(removal.deleted))


def _rev_of(rev: str | _Version | None) -> str:
    text = _text_of(rev)
    if not text:
        raise Undecodable("_sync.rev is missing or empty")
    return text


def _text_of(rev: str | _Version | None) -> str:
    text = rev if isinstance(rev, str) else (rev and rev.rev) or ""
    if len(text) > _SHORT_REV_CHARACTERS and len(text.encode()) > MAX_REV_BYTES:
        raise Undecodable(f"revision id of {len(text.encode())} bytes, at most {MAX_REV_BYTES} can be indexed")
    return text


def _reason(error: Exception) -> str:
    """Describe *error* without a byte of the document: the parser's messages name types, fields and offsets only."""
    if isinstance(error, UnicodeDecodeError):
        return "a string is not UTF-8"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return str(error)
