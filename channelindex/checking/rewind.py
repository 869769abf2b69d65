"""Takes partitions back to an earlier clock, in a running index: the source is streamed again from there.

It is a new epoch that starts lower, as after a rollback of the source. The owner of a partition is refused when it next
advances, and begins anew at the lowered checkpoints. Until it has caught up, the stable clock is lower than it was.
"""

import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from channelindex.epochs import PartitionRecord, returned
from channelindex.errors import IndexCorrupt, IndexMissing, OwnershipLost, StaleEpoch, Transient
from channelindex.model import Checkpoint
from channelindex.stores.base import IndexReader, OwnerStore

_ATTEMPTS = 20
"""Attempts per partition, which may change its owner meanwhile. A takeover takes longer than an attempt."""


class Rewound(NamedTuple):
    """A partition that `epoch` took back; its stable seqnos by vbucket before and after."""

    partition: int
    epoch: int
    before: Mapping[int, int]
    after: Mapping[int, int]


class Progress(NamedTuple):
    """Seqnos that are stable again, and all that were taken back."""

    done: int
    total: int


def requester(job: str) -> str:
    """Return the owner that a partition record names for an epoch of *job*: command, host and process.

    It has spaces, which no node's name has.
    """
    return f"{job} by {socket.gethostname()}:{os.getpid()}"


def requested_by(reader: IndexReader, partition: int) -> str:
    """Return the command that began the present epoch of *partition*; "" if a node did, or if none is kept."""
    try:
        owner = reader.partition_records()[partition].owner
    except (Transient, IndexMissing, IndexCorrupt):  # the worker's next life meets it, too
        return ""
    return owner if " " in owner else ""


def rewind_partitions(
    owner: OwnerStore, reader: IndexReader, partitions: Iterable[int], clock: Mapping[int, int], who: str
) -> Iterator[Rewound]:
    """Take each of *partitions* back to *clock*; yield each as it is done. A vbucket not above *clock* is unchanged.

    Each partition is changed by itself, atomically. Repeating all of it does no harm.

    Raises:
        Transient: the store is away or has moved, or a partition kept changing its owner. Those yielded before are
            taken back.
    """
    epoch = owner.next_epoch()
    records = reader.partition_records()
    for partition in partitions:
        for _ in range(_ATTEMPTS):
            before = records[partition]
            try:
                after = owner.begin(partition, epoch, who, _lowered(before, clock), only_if=before.epoch)
            except StaleEpoch:  # a new owner began since
                epoch, records = owner.next_epoch(), reader.partition_records()
            except OwnershipLost as error:  # the store moved: what follows needs another connection
                raise Transient(str(error)) from error
            else:
                assert after.vbuckets == before.vbuckets, "one partition"
                yield Rewound(partition, epoch, _stable(before), _stable(after))
                break
        else:
            raise Transient(f"partition {partition} changed its owner {_ATTEMPTS} times while it was taken back")


def progress(rewound: Sequence[Rewound], records: Sequence[PartitionRecord]) -> Progress:
    """Progress of *records* towards the clock that they had before they were *rewound*."""
    done = total = 0
    for partition, _, before, after in rewound:
        for vb, seqno in _stable(records[partition]).items():
            goal = max(before[vb], after[vb])
            done += min(max(seqno, after[vb]), goal) - after[vb]
            total += goal - after[vb]
    assert 0 <= done <= total, "nothing counts beyond where it was"
    return Progress(done, total)


def earlier(checkpoint: Checkpoint, seqno: int) -> Checkpoint:
    """The position *seqno*, below *checkpoint*, from which the feed can be resumed without loss.

    What the index has up to it was fed when the source knew all up to the end of the checkpoint's snapshot: of what had
    changed until then, older versions were left out. So the position lies in a snapshot from 0 to that end. A source
    that has lost part of that since, and has older versions again, answers with a rollback.
    """
    assert 0 <= seqno < checkpoint.seqno, "it is a step back"
    return returned(checkpoint, Checkpoint(checkpoint.vbuuid, seqno, seqno, seqno), 0)


def _lowered(record: PartitionRecord, clock: Mapping[int, int]) -> dict[int, Checkpoint]:
    return {
        vb: earlier(checkpoint, clock[vb])
        for vb, checkpoint in zip(record.vbuckets, record.checkpoints, strict=True)
        if vb in clock and clock[vb] < checkpoint.seqno
    }


def _stable(record: PartitionRecord) -> dict[int, int]:
    return dict(zip(record.vbuckets, record.stable, strict=True))
