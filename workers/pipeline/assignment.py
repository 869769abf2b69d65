"""Carries assignments to a feed worker while it works, and its reports of what it works on.

State rather than events, as between supervisor and keeper: the newest message is complete, so nothing can grow
and nobody waits. A worker lets go of a partition by saying that it works on it no more: until then, the supervisor
assumes that it works on everything that it was ever assigned.
"""

import socket
from collections.abc import Iterable

import msgspec

from coordinator.keeper_link import SocketEnd


class Wanted(msgspec.Struct, frozen=True):
    """The partitions that the supervisor assigns to a worker. `number` rises with each change."""

    number: int
    partitions: frozenset[int]


class Working(msgspec.Struct, frozen=True):
    """The partitions that a worker works on, and the number of the newest assignment that it had read."""

    number: int
    partitions: frozenset[int]


class AssignmentLink(SocketEnd):
    """The supervisor's end. `working` is what the worker may be working on."""

    _decode = msgspec.msgpack.Decoder(Working).decode

    def __init__(self, end: socket.socket, partitions: frozenset[int]) -> None:
        super().__init__(end)
        self.working = partitions
        self._wanted = Wanted(0, partitions)
        self._sent = 0

    def want(self, partitions: frozenset[int]) -> None:
        """Have the worker work on *partitions*, no more and no less."""
        if partitions != self._wanted.partitions:
            self._wanted = Wanted(self._wanted.number + 1, partitions)
            self.working |= partitions
        if self._sent < self._wanted.number and self.send(msgspec.msgpack.encode(self._wanted)):
            self._sent = self._wanted.number

    def poll(self) -> None:
        """Hear what the worker works on."""
        while message := self.receive():
            report = self._decode(message)
            if report.number == self._wanted.number:  # else it may have begun since what it did not know of then
                self.working = report.partitions


class WorkerLink(SocketEnd):
    """The worker's end."""

    _decode = msgspec.msgpack.Decoder(Wanted).decode

    def __init__(self, end: socket.socket) -> None:
        super().__init__(end)
        self._number = 0

    def wanted(self) -> frozenset[int] | None:
        """The newest that is wanted; None where nothing new is."""
        newest = None
        while message := self.receive():
            newest = self._decode(message)
        if newest is None:
            return None
        self._number = newest.number
        return newest.partitions

    def report(self, partitions: Iterable[int]) -> bool:
        """Report what we work on; return false where it has to be sent again."""
        return self.send(msgspec.msgpack.encode(Working(self._number, frozenset(partitions))))


def assignment_link(partitions: frozenset[int]) -> tuple[AssignmentLink, WorkerLink]:
    """Both ends, to be made before the fork of a worker that begins with *partitions*."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return AssignmentLink(ours, partitions), WorkerLink(its)
