"""The meta record of an index: its stored form, and how the one that is there is compared with our configuration."""

import msgspec

from channelindex.blocks import FORMAT_VERSION
from channelindex.errors import IndexCorrupt, IndexMismatch, IndexMissing
from channelindex.model import IndexMeta


class _Versioned(msgspec.Struct):
    """The part of a meta record that every format version has."""

    format: int


def encode_meta(meta: IndexMeta) -> bytes:
    """*meta* as JSON: the one record that a person may want to read in the store."""
    return msgspec.json.encode(meta)


def decode_meta(stored: bytes | None, where: str, index_name: str) -> IndexMeta:
    """Decode the meta record *stored*.

    Raises:
        IndexMissing: *stored* is None.
        IndexMismatch: it is of another format version than this code reads.
        IndexCorrupt: it is no meta record; the message names *where*.
    """
    if stored is None:
        raise missing_index(index_name)
    try:
        check_format(msgspec.json.decode(stored, type=_Versioned).format, index_name)
        return msgspec.json.decode(stored, type=IndexMeta)
    except msgspec.MsgspecError as error:
        raise IndexCorrupt(f"{where}: {error}") from error


def check_format(found: int, index_name: str) -> None:
    """Check that this program reads and writes an index of format version *found*.

    Raises:
        IndexMismatch: it does not; the message says whether to upgrade the program or to build another index.
    """
    if found > FORMAT_VERSION:
        raise IndexMismatch(
            f"index {index_name!r} has format version {found}, written by a newer channelindex; "
            f"this one reads and writes version {FORMAT_VERSION}: upgrade it, or set index.name to another index"
        )
    if found < FORMAT_VERSION:
        raise IndexMismatch(
            f"index {index_name!r} has format version {found}, this channelindex reads and writes {FORMAT_VERSION}: "
            "set index.name to a new name to build another index"
        )


def check_meta(found: IndexMeta, expected: IndexMeta, index_name: str) -> None:
    """Compare all but `index_uuid`.

    Raises:
        IndexMismatch: *found* is of another shape or source bucket than *expected*.
    """
    for field, what in (
        ("n_vbuckets", "number of vbuckets"),
        ("n_partitions", "index.partitions"),
        ("source_uuid", "source bucket UUID"),
    ):
        if getattr(found, field) != getattr(expected, field):
            raise IndexMismatch(_mismatch(index_name, what, getattr(found, field), getattr(expected, field)))


def check_width(found: int, expected: IndexMeta, index_name: str) -> None:
    """Compare the number of vbuckets in partition records whose meta record is lost with that of *expected*.

    Raises:
        IndexMismatch: they differ; the message names the index.partitions that the records were made with.
    """
    assert found > 0, "a partition has a vbucket"
    if found == expected.partition_width:
        return
    cure = "point source.url at the bucket that it was built for"
    if expected.n_vbuckets % found == 0:
        cure = f"it was built with index.partitions = {expected.n_vbuckets // found}, so set that"
    raise IndexMismatch(
        f"index {index_name!r} has partition records of {found} vbuckets, and index.partitions = "
        f"{expected.n_partitions} expects {expected.partition_width}: {cure}, or set index.name to a new name"
    )


def _mismatch(index_name: str, what: str, found: object, expected: object) -> str:
    return (
        f"index {index_name!r} has {what} {found}, expected {expected}: "
        "set index.name to a new name to build another index, or point source.url and index.* at what it was built for"
    )


def missing_index(index_name: str) -> IndexMissing:
    """The error of whoever finds nothing of an index."""
    return IndexMissing(
        f"there is no index {index_name!r} in index.store: a node that starts makes one; "
        "if there should be one, check index.name and index.store"
    )


def lost_meta(key: str) -> IndexCorrupt:
    """The error of whoever finds partition records of an index and no meta record."""
    return IndexCorrupt(f"{key}: the meta record is missing though the index is there: {_REPAIR}")


def lost_record(key: str, why: str = "is missing") -> IndexCorrupt:
    """The error of whoever finds the partition record *key* missing or garbled."""
    return IndexCorrupt(f"{key}: the partition record {why}: {_REPAIR}")


_REPAIR = "the store has lost data; channelindex repair writes it anew"
