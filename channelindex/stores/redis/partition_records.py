"""The meta record, and a partition record as the fields of a Redis hash."""

from collections.abc import Sequence

from channelindex.epochs import PartitionRecord
from channelindex.model import IndexMeta
from channelindex.redis.link import Link
from channelindex.stores.meta import decode_meta, lost_meta, lost_record
from channelindex.stores.records import unpack_checkpoints, unpack_history, unpack_seqnos
from channelindex.stores.redis.keys import Keys

RECORD_FIELDS = ("epoch", "owner", "ck", "hist", "archived", "through", "restart")


def decode_record(fields: Sequence[bytes | None], vbuckets: range, key: str) -> PartitionRecord:
    """Decode the values of RECORD_FIELDS.

    Raises:
        IndexCorrupt: a field is missing or garbled. An index has all records from its creation on: one that is gone
            was lost, and starting anew in its place would hide that.
    """
    present = [field for field in fields if field is not None]
    if len(present) < len(fields):
        raise lost_record(key, "is missing or incomplete")
    epoch, owner, checkpoints, history, archived, through, restart = present
    return PartitionRecord(
        vbuckets.start,
        int(epoch),
        owner.decode(),
        unpack_checkpoints(checkpoints, len(vbuckets), key),
        unpack_history(history, len(vbuckets), key),
        int(archived),
        unpack_seqnos(through, len(vbuckets), key),
        unpack_seqnos(restart, len(vbuckets), key),
    )


def read_meta(link: Link, keys: Keys, index_name: str) -> IndexMeta:
    """The meta record of the index in the Redis of *link*.

    Raises:
        IndexMissing: there is no such index.
        IndexMismatch: it is of another format version than this code reads.
        IndexCorrupt: the meta record is missing though partition records are there, or garbled.
    """
    stored = link.execute("GET", keys.meta)
    if stored is None and any(link.pipeline([("EXISTS", keys.partition(partition)) for partition in range(2)])):
        stored = link.execute("GET", keys.meta)  # the index may have been made in between
        if stored is None:
            raise lost_meta(keys.meta)
    return decode_meta(stored, keys.meta, index_name)
