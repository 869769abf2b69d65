"""Defines the contract of a feed, the source of mutations that a feed worker drives.

A feed never blocks: the worker polls `fileno()` together with its own descriptors, calls `read` when it is readable
and `tick` when its deadline comes. Events are plain tuples, because there are a hundred thousand of them a second; the
first item is the kind, the second the vbucket. Events of one vbucket come in the order of its seqnos.

    (MUTATION | DELETION | EXPIRATION, vb, seqno, key, datatype, value)    a document; key and value are bytes
    (ADVANCED, vb, seqno)              a seqno without a document (system event, seqno advanced, filtered)
    (SNAPSHOT, vb, snap_start, snap_end[, purge_seqno])   the events up to the next one belong to this snapshot
    (HISTORY, vb, failover_log)        the stream was accepted; ((vbuuid, seqno), ...), newest first
    (ROLLBACK, vb, checkpoint)         the source took back what we had; resume there, in a new epoch
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from channelindex.model import Checkpoint

MUTATION = 0
DELETION = 1
EXPIRATION = 2
ADVANCED = 3
SNAPSHOT = 4
HISTORY = 5
ROLLBACK = 6

# Bits of an event's datatype, as the protocol defines them.
JSON = 0x01
SNAPPY = 0x02
XATTR = 0x04

Event = tuple[Any, ...]


class Events(Protocol):
    """A list of events, as far as a feed needs one. That of the compiled kernel makes tuples of those looked at."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Event: ...

    def __iter__(self) -> Iterator[Event]: ...

    def append(self, event: Event, /) -> None:
        """Add one at the end."""
        ...

    def extend(self, events: Iterable[Event], /) -> None:
        """Add some at the end; those of a list like this one stay what they are there."""
        ...

    def pop(self) -> Event:
        """Take out the last one."""
        ...


FailoverLog = tuple[tuple[int, int], ...]


class SourceInfo(NamedTuple):
    """A bucket's identity and shape."""

    uuid: str
    n_vbuckets: int


class EventSource(Protocol):
    """Streams the changes of some vbuckets. One instance per reading process; not safe for threads."""

    def start(self, checkpoints: Mapping[int, Checkpoint]) -> None:
        """Begin to stream each vbucket from its checkpoint; `read` and `tick` connect and reconnect."""
        ...

    def fileno(self) -> int:
        """A descriptor that is readable whenever `read` or `tick` has something to do."""
        ...

    def read(self, max_bytes: int) -> Events:
        """The events that have arrived, from about *max_bytes* of input; empty when there is nothing now.

        Raises:
            AuthenticationFailed: the source refuses our credentials.
            ConfigInvalid: the bucket does not exist or cannot be streamed as configured.
        """
        ...

    def acknowledge(self) -> None:
        """Tell the source that all events returned so far have been taken over (flow control)."""
        ...

    def tick(self, now: float) -> float:
        """Do what is due at *now* (monotonic): noop, timeouts, reconnection. When to call again, at the latest."""
        ...

    def close(self) -> None:
        """Close the connections. May be called twice, and before `start`."""
        ...


class Feed(EventSource, Protocol):
    """A feed for a feed worker: streams without an end, which may be added and removed while the others continue."""

    def add(self, checkpoints: Mapping[int, Checkpoint]) -> None:
        """Stream these vbuckets too, each from its checkpoint, beside those that go on. None of them is streamed yet.

        What is left of an earlier stream of such a vbucket must not come out of `read` any more.
        """
        ...

    def drop(self, vbuckets: Collection[int]) -> None:
        """Stream these vbuckets no more. No later `read` gives events of them."""
        ...

    def read_bytes(self) -> int:
        """The bytes of input that the last `read` took: many where more is on its way."""
        ...

    def high_seqnos(self) -> Mapping[int, int]:
        """The highest seqno of each vbucket that the source reported last, for the lag; may be incomplete or old."""
        ...

    def connected(self) -> bool:
        """True if every stream that should run is running (open or being opened on a live connection)."""
        ...


def vbuuid_at(failover_log: FailoverLog, seqno: int) -> int:
    """The vbuuid of the history branch that *seqno* lies on: the newest branch that began at or below it.

    To resume within a snapshot, ask for the branch of the snapshot's end: a server rolls back a snapshot that ends
    beyond the end of the branch it is named with.
    """
    assert failover_log, "there is always a branch of history"
    for vbuuid, branched_at in failover_log:
        if branched_at <= seqno:
            return vbuuid
    return failover_log[-1][0]
