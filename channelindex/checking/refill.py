"""Writes again what an index lacks, from the bucket: the entries that `verify` misses.

They are written as the present owners would have: under the epoch of the document's partition, so whatever takes that
epoch back takes them back; and only what is stable, so what a node is about to write is left to it. Each such epoch has
a group of its own, into which nobody else writes.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from channelindex import blocks
from channelindex.checking.bucket_state import DocumentVersion
from channelindex.epochs import PartitionRecord
from channelindex.model import DELETED, REMOVED, Entry
from channelindex.stores.base import ChannelAppend, IndexWriter

Lacking = tuple[str, DocumentVersion]
"""A channel, and a document of which it lacks the newest version."""


def write_lacking(writer: IndexWriter, records: Sequence[PartitionRecord], lacking: Iterable[Lacking]) -> int:
    """Write the entries that channels lack; how many.

    Raises:
        StoreUnavailable, OutcomeUnknown: some may be written. To repeat it is safe.
    """
    entries = _entries(records, lacking)
    appends = [
        ChannelAppend(channel, f"repair-{epoch:x}", epoch, b"".join(map(blocks.pack_entry, sorted(of_channel))))
        for (epoch, channel), of_channel in sorted(entries.items())
    ]
    refused = writer.write(appends)
    assert not refused, "nobody else writes into these groups"
    return sum(map(len, entries.values()))


def _entries(records: Sequence[PartitionRecord], lacking: Iterable[Lacking]) -> dict[tuple[int, str], set[Entry]]:
    """Return the entries that are to be written, by epoch and channel."""
    assert records, "an index has a partition"
    entries: defaultdict[tuple[int, str], set[Entry]] = defaultdict(set)
    width = len(records[0].vbuckets)
    for channel, document in lacking:
        record = records[document.vb // width]
        expected = document.membership(channel)
        assert expected is not None, "it lacks what it should have"
        if document.seqno <= record.stable[document.vb - record.first_vb]:
            flags = (DELETED if expected.deleted else 0) | (REMOVED if expected.removed else 0)
            entry = Entry(document.vb, document.seqno, document.key, expected.rev, flags)
            entries[record.epoch, channel].add(entry)
    return entries
