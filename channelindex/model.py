"""Defines the values that travel through the system. No I/O; knows no store and no feed."""

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

STAR_CHANNEL = "*"
"""The channel of all documents."""

# Flags of an entry, as Sync Gateway defines them (channels/log_entry.go). Unknown bits are kept.
DELETED = 1
REMOVED = 2
HIDDEN = 4
CONFLICT = 8


class Checkpoint(NamedTuple):
    """A position of one vbucket from which its feed can be resumed without loss.

    `vbuuid`, `seqno`, `snap_start`, `snap_end` are what a DCP stream request needs (snap_start <= seqno <= snap_end).
    `purge_seqno` is up to where the source had purged tombstones when it built the last snapshot from disk that led
    here, 0 where that is unknown: while it has purged no more, a position below it can be resumed. All are unsigned
    64-bit.
    """

    vbuuid: int = 0
    seqno: int = 0
    snap_start: int = 0
    snap_end: int = 0
    purge_seqno: int = 0

    @property
    def is_complete(self) -> bool:
        """True at either end of a snapshot, as the source takes it: no version of a document below is missing."""
        return self.seqno in (self.snap_start, self.snap_end)

    @property
    def complete_at(self) -> int:
        """The last seqno up to here at which no version of a document was missing."""
        return self.seqno if self.is_complete else self.snap_start

    @property
    def reach(self) -> int:
        """The seqno up to which a source that resumes here has to have kept its history; else it rolls back."""
        return self.seqno if self.is_complete else self.snap_end


ORIGIN = Checkpoint()


class Removal(msgspec.Struct, frozen=True, gc=False):
    """A document left a channel: at which sequence (0: unknown), by which revision, and whether by deletion."""

    sequence: int
    rev: str
    deleted: bool


class Route(msgspec.Struct, frozen=True, gc=False):
    """The channels of one revision of a document: the result of decoding a mutation.

    `channels` maps a channel's name to None (the document is in it) or to the `Removal` that took it out.
    `sequence` is 0 where the document carries none. `flags` are those of the revision, without REMOVED.
    """

    rev: str
    flags: int
    sequence: int
    channels: Mapping[str, Removal | None]


class Principal(msgspec.Struct, frozen=True):
    """A user or role whose document changed: no entry, its counter rises.

    `key` is the document's key; `kind` is "user" or "role"; `metadata_id` is "" outside namespaced databases.
    """

    key: str
    kind: str
    metadata_id: str
    name: str


class Entry(NamedTuple):
    """One document in one channel, as of one seqno of its vbucket."""

    vb: int
    seqno: int
    key: bytes
    rev: str
    flags: int


class IndexMeta(msgspec.Struct, frozen=True):
    """The shape and source of an index; written once when it is created, compared whenever it is opened."""

    format: int
    n_vbuckets: int
    n_partitions: int
    source_uuid: str
    index_uuid: str

    @property
    def partition_width(self) -> int:
        """Vbuckets in one partition; partition p holds p * width to (p + 1) * width - 1."""
        return self.n_vbuckets // self.n_partitions

    def vbuckets_of(self, partition: int) -> range:
        """The vbuckets of *partition*, ascending."""
        return range(partition * self.partition_width, (partition + 1) * self.partition_width)
