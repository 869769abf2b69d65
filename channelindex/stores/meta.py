"""The meta record of an index: its stored form, and how the one that is there is compared with our configuration."""

import msgspec

from channelindex.blocks import FORMAT_VERSION
from channelindex.errors import IndexCorrupt, IndexMismatch, IndexMissing
from channelindex.model import IndexMeta


def encode_meta(meta: IndexMeta) -> bytes:
    """*meta* as JSON: the one record that a person may want to read in the store."""
    return msgspec.json.encode(meta)


def decode_meta(stored: bytes | None, where: str, index_name: str) -> IndexMeta:
    """The meta record that *stored* says.

    Raises:
        IndexMissing: *stored* is None.
        IndexMismatch: it is of another format version than this code reads.
        IndexCorrupt: it is no meta record; the message names *where*.
    """
    if stored is None:
        raise IndexMissing(f"there is no index {index_name!r} in index.store; check index.name and index.store")
    try:
        meta = msgspec.json.decode(stored, type=IndexMeta)
    except msgspec.MsgspecError as error:
        raise IndexCorrupt(f"{where}: {error}") from error
    if meta.format != FORMAT_VERSION:
        raise IndexMismatch(_mismatch(index_name, "format version", meta.format, FORMAT_VERSION))
    return meta


def check_meta(found: IndexMeta, wanted: IndexMeta, index_name: str) -> None:
    """Compare all but `index_uuid`.

    Raises:
        IndexMismatch: *found* is of another shape or source bucket than *wanted*.
    """
    for field, what in (
        ("format", "format version"),
        ("n_vbuckets", "number of vbuckets"),
        ("n_partitions", "index.partitions"),
        ("source_uuid", "source bucket UUID"),
    ):
        if getattr(found, field) != getattr(wanted, field):
            raise IndexMismatch(_mismatch(index_name, what, getattr(found, field), getattr(wanted, field)))


def _mismatch(index_name: str, what: str, found: object, wanted: object) -> str:
    return (
        f"index {index_name!r} has {what} {found}, expected {wanted}: "
        "set index.name to a new name to build another index, or point source.url and index.* at what it was built for"
    )
