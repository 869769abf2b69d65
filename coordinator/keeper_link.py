"""Connects the supervisor and its lease keeper by a socket, and defines the messages on it.

Both directions carry state rather than events: the newest `KeeperReport` is complete, and orders that could not be sent
yet are merged into one. So nothing here can grow, whichever side stalls, and neither side ever waits for the other. The
socket keeps message boundaries (SOCK_SEQPACKET) and ends when either process does.
"""

import socket
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from channelindex.errors import InvariantBroken

MAX_MESSAGE_BYTES = 1 << 17
"""Below the kernel's default limit of one message (208 KiB); a report of 1024 partitions has some 16 KiB."""


class Trouble(msgspec.Struct, frozen=True):
    """The reason for which the leases cannot be renewed now: one line for a person, and the exit code of its kind."""

    exit_code: int
    message: str


class Scale(NamedTuple):
    """The numbers of workers that an operator ordered."""

    feed_workers: int
    batch_writers: int


class KeeperReport(msgspec.Struct, frozen=True):
    """The keeper's report to the supervisor: the node's leases, and the state of the cluster.

    `leases` maps each partition of ours to the monotonic time (of this machine, any process) at which work on it must
    have stopped; the supervisor watches these itself, since a keeper that hangs cannot report that they passed.
    `due_releases` are partitions of `leases` to drain and then to release, because a peer is due for them.
    `n_to_move`: moves that the whole cluster has yet to make. `unowned` maps the partitions without an owner to the
    seconds for which this keeper has known it. `scale`: the worker counts that an operator ordered.
    `trouble` is None where the last tick went well; else the rest is from the last one that did.
    """

    leases: dict[int, float]
    due_releases: list[int]
    n_members: int = 0
    n_to_move: int = 0
    unowned: dict[int, float] = {}
    scale: Scale | None = None
    trouble: Trouble | None = None
    last_order: int = 0


class Orders(msgspec.Struct, frozen=True):
    """The supervisor's orders to the keeper: `release` were drained, `drain` releases everything for good."""

    number: int
    release: list[int]
    drain: bool
    status: str


class SocketEnd:
    """One end of a socket between two processes of a node, non-blocking."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end
        self.closed = False

    def fileno(self) -> int:
        """The descriptor to wait on for something to read."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket. May be called twice."""
        self.closed = True
        self._socket.close()

    def receive(self) -> bytes:
        """The next message; b"" where there is none, or where the other end is gone (then `closed` is set)."""
        if self.closed:
            return b""
        try:
            message = self._socket.recv(MAX_MESSAGE_BYTES)
        except BlockingIOError:
            return b""
        except ConnectionError:
            message = b""
        self.closed = not message
        return message

    def send(self, message: bytes) -> bool:
        """Send *message*; return false where the socket is full or the other end is gone."""
        if len(message) > MAX_MESSAGE_BYTES:
            raise InvariantBroken(f"a message between two processes of a node has {len(message)} bytes")
        if self.closed:
            return False
        try:
            self._socket.send(message)
        except BlockingIOError:
            return False
        except ConnectionError:
            self.closed = True
            return False
        return True


class KeeperLink(SocketEnd):
    """The supervisor's end. No call blocks.

    A partition that was released is not in `KeeperReport.leases` again before the keeper has released it: a report that
    the keeper sent before it read the order must not make the supervisor start over.

    A new keeper gets a new link, and needs all orders again that the old one had not carried out: the status, `drain`,
    and the release of whatever it still reports as leased but is drained already.
    """

    _decode = msgspec.msgpack.Decoder(KeeperReport).decode

    def __init__(self, end: socket.socket) -> None:
        super().__init__(end)
        self._n_sent = 0
        self._order_by_released: dict[int, int] = {}
        self._unsent: Orders | None = None

    def release(self, partitions: Iterable[int]) -> None:
        """Have the keeper release *partitions*: they were drained, no worker here writes to them any more."""
        self._order(release=list(partitions))

    def drain(self) -> None:
        """Have the keeper take nothing more and release everything; it ends when it has no lease left."""
        self._order(drain=True)

    def publish_status(self, status: str) -> None:
        """Publish *status* (JSON, below 64 KiB) for `channelindex status` from the next tick on."""
        self._order(status=status)

    def poll(self) -> KeeperReport | None:
        """The newest message of the keeper, None where there is no new one. Sends what could not be sent before."""
        newest = None
        while message := self.receive():
            newest = message
        self._flush()
        return self._without_released(self._decode(newest)) if newest else None

    def _order(self, release: list[int] | None = None, drain: bool = False, status: str = "") -> None:
        before = self._unsent or Orders(self._n_sent + 1, [], False, "")
        self._unsent = Orders(
            before.number,
            sorted({*before.release, *(release or [])}),
            before.drain or drain,
            status or before.status,
        )
        self._order_by_released.update(dict.fromkeys(release or [], before.number))
        self._flush()

    def _flush(self) -> None:
        assert not self._unsent or self._unsent.number == self._n_sent + 1, (
            "orders arrive in the order of their numbers"
        )
        if self._unsent and self.send(msgspec.msgpack.encode(self._unsent)):
            self._n_sent = self._unsent.number
            self._unsent = None

    def _without_released(self, report: KeeperReport) -> KeeperReport:
        assert report.last_order <= self._n_sent, "it has read what was never sent"
        self._order_by_released = {
            partition: order for partition, order in self._order_by_released.items() if order > report.last_order
        }
        released = self._order_by_released.keys()
        return msgspec.structs.replace(
            report,
            leases={partition: at for partition, at in report.leases.items() if partition not in released},
            due_releases=[partition for partition in report.due_releases if partition not in released],
        )


class SupervisorLink(SocketEnd):
    """The keeper's end."""

    _decode = msgspec.msgpack.Decoder(Orders).decode

    def orders(self) -> list[Orders]:
        """All orders that have arrived, oldest first."""
        arrived = []
        while message := self.receive():
            arrived.append(self._decode(message))
        return arrived

    def report(self, report: KeeperReport) -> None:
        """Send a report to the supervisor; dropped where it does not read, since the next tick sends another."""
        self.send(msgspec.msgpack.encode(report))


def keeper_link() -> tuple[KeeperLink, SupervisorLink]:
    """Make both ends, before the fork. Each process closes the other's, and every other child both."""
    supervisor_end, keeper_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return KeeperLink(supervisor_end), SupervisorLink(keeper_end)
