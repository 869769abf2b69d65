"""A partition record as a document."""

import msgspec

from channelindex.epochs import PartitionRecord
from channelindex.errors import IndexCorrupt
from channelindex.stores.couchbase.link import Stored
from channelindex.stores.meta import lost_record
from channelindex.stores.records import (
    CHECKPOINT_BYTES,
    pack_checkpoints,
    pack_history,
    pack_seqnos,
    unpack_checkpoints,
    unpack_history,
    unpack_seqnos,
)


class _PartitionDocument(msgspec.Struct, array_like=True):
    """The fields of docs/format.md, as a MessagePack array."""

    epoch: int
    owner: str
    checkpoints: bytes
    history: bytes
    archived: int
    compacted_through: bytes
    restarting: bytes


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(_PartitionDocument)


def encode_record(record: PartitionRecord) -> bytes:
    """The document of *record*."""
    checkpoints, history = pack_checkpoints(record.checkpoints), pack_history(record.history)
    assert len(checkpoints) == CHECKPOINT_BYTES * len(record.vbuckets)
    through, restarting = pack_seqnos(record.compacted_through), pack_seqnos(record.restarting)
    return _encode(
        _PartitionDocument(record.epoch, record.owner, checkpoints, history, record.archived, through, restarting)
    )


def decode_record(stored: Stored | None, vbuckets: range, key: str) -> PartitionRecord:
    """Decode a partition's document.

    Raises:
        IndexCorrupt: it is missing or garbled. An index has all records from its creation on: one that is gone was
            lost, and starting anew in its place would hide that.
    """
    if stored is None:
        raise lost_record(key)
    try:
        document = _decoder.decode(stored.value)
    except msgspec.MsgspecError as error:
        raise IndexCorrupt(f"{key}: {error}") from error
    return PartitionRecord(
        vbuckets.start,
        document.epoch,
        document.owner,
        unpack_checkpoints(document.checkpoints, len(vbuckets), key),
        unpack_history(document.history, len(vbuckets), key),
        document.archived,
        unpack_seqnos(document.compacted_through, len(vbuckets), key),
        unpack_seqnos(document.restarting, len(vbuckets), key),
    )
