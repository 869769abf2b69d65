"""A partition record as the fields of a Redis hash."""

from collections.abc import Sequence

from channelindex.epochs import PartitionRecord
from channelindex.errors import IndexCorrupt
from channelindex.stores.records import unpack_checkpoints, unpack_history

RECORD_FIELDS = ("epoch", "owner", "ck", "hist", "archived")


def decode_record(fields: Sequence[bytes | None], vbuckets: range, key: str) -> PartitionRecord:
    """The record that the values of RECORD_FIELDS say.

    Raises:
        IndexCorrupt: a field is missing or garbled. An index has all records from its creation on: one that is gone
            was lost, and starting anew in its place would hide that.
    """
    epoch, owner, checkpoints, history, archived = fields
    if epoch is None or owner is None or checkpoints is None or history is None or archived is None:
        raise IndexCorrupt(f"{key}: the partition record is missing or incomplete; the index has to be rebuilt")
    return PartitionRecord(
        vbuckets.start,
        int(epoch),
        owner.decode(),
        unpack_checkpoints(checkpoints, len(vbuckets), key),
        unpack_history(history, len(vbuckets), key),
        int(archived),
    )
