"""Carries to a feed worker, while it works, which partitions to work on, and back which it still works on.

State rather than events, as between supervisor and keeper: the newest message is complete, so nothing can grow
and nobody waits. A worker lets go of a partition by saying that it works on it no more: until then, the supervisor
takes it to work on everything that it was ever given.
"""

import socket
from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec

from channelindex.polling import HasFileno
from coordinator.keeper_link import SocketEnd


class Assigned(msgspec.Struct, frozen=True):
    """Says what the supervisor assigned to the worker. `number` rises with each change."""

    number: int
    partitions: frozenset[int]


class Working(msgspec.Struct, frozen=True):
    """Says what the worker works on, and the number of the newest `Assigned` that it had read by then."""

    number: int
    partitions: frozenset[int]


class AssignmentLink(SocketEnd):
    """Is the supervisor's end. `working` is what the worker may be working on."""

    _decode = msgspec.msgpack.Decoder(Working).decode

    def __init__(self, end: socket.socket, partitions: frozenset[int]) -> None:
        super().__init__(end)
        self.working = partitions
        self._assigned = Assigned(0, partitions)
        self._sent = 0

    def assign(self, partitions: frozenset[int]) -> None:
        """Have the worker work on *partitions*, no more and no less."""
        if partitions != self._assigned.partitions:
            self._assigned = Assigned(self._assigned.number + 1, partitions)
            self.working |= partitions
        if self._sent < self._assigned.number and self.send(msgspec.msgpack.encode(self._assigned)):
            self._sent = self._assigned.number

    def poll(self) -> None:
        """Take over what the worker reports that it works on."""
        while message := self.receive():
            reported = self._decode(message)
            assert reported.number <= self._assigned.number, "it has read what was never sent"
            if reported.number == self._assigned.number:  # else it may have begun since what it did not know of then
                assert reported.partitions <= self.working, "it works on what it was given"
                self.working = reported.partitions


class Assignment(Protocol):
    """Which partitions a feed worker is to work on, as it sees it."""

    @property
    def sources(self) -> Sequence[HasFileno]:
        """Descriptors that are readable once there may be a new assignment."""
        ...

    def newest(self) -> frozenset[int] | None:
        """Return the newest set that was assigned; None where there is no new one."""
        ...

    def report(self, partitions: Iterable[int]) -> bool:
        """Report what the worker works on; return False where it has to be reported again."""
        ...


class FixedAssignment:
    """`Assignment` that never changes: the worker keeps what it begins with, and nobody asks."""

    sources: Sequence[HasFileno] = ()

    def newest(self) -> frozenset[int] | None:
        """See `Assignment.newest`: nothing new, ever."""
        return None

    def report(self, partitions: Iterable[int]) -> bool:  # noqa: ARG002 nobody needs it
        """See `Assignment.report`: always done."""
        return True


class WorkerLink(SocketEnd):
    """`Assignment` by the supervisor: the worker's end."""

    _decode = msgspec.msgpack.Decoder(Assigned).decode

    def __init__(self, end: socket.socket) -> None:
        super().__init__(end)
        self._number = 0

    @property
    def sources(self) -> Sequence[HasFileno]:
        """See `Assignment.sources`."""
        return (self,)

    def newest(self) -> frozenset[int] | None:
        """See `Assignment.newest`."""
        newest = None
        while message := self.receive():
            newest = self._decode(message)
        if newest is None:
            return None
        assert newest.number > self._number, "numbers rise"
        self._number = newest.number
        return newest.partitions

    def report(self, partitions: Iterable[int]) -> bool:
        """See `Assignment.report`."""
        return self.send(msgspec.msgpack.encode(Working(self._number, frozenset(partitions))))


def assignment_link(partitions: frozenset[int]) -> tuple[AssignmentLink, WorkerLink]:
    """Make both ends, before the fork of a worker that begins with *partitions*."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return AssignmentLink(ours, partitions), WorkerLink(its)
