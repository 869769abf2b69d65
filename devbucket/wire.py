"""Carries what a connection sends to the client: here it can be delayed, cut, changed, or lost.

Without a fault, bytes go straight to the transport.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from channelindex import mcbp
from channelindex.mcbp import Op


class Wire:
    """Sends in order, whatever the faults; they concern what is written after they were set.

    `on_sent` is called when nothing waits any more. `waiting_bytes` are what the transport has not been given yet.
    """

    def __init__(self, transport: asyncio.Transport, on_sent: Callable[[], None]) -> None:
        self.delay_s = 0.0
        self.piece_bytes = 0  # what is given to the kernel at once; 0: all there is
        self.waiting_bytes = 0
        self.half_open = False
        self._transport = transport
        self._on_sent = on_sent
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._flip_at: int | None = None
        self._cut_next = False
        self._closing = False

    def become_half_open(self) -> None:
        """Let the connection stand, but nothing comes any more and nobody listens, as behind a broken network."""
        self.half_open = True
        self._transport.pause_reading()
        self.stop()

    def flip_next(self, offset: int) -> None:
        """Invert a byte of the next document; an offset beyond its frame wraps, -1 is the last byte of its value."""
        assert offset >= -1
        self._flip_at = offset

    def cut_next(self) -> None:
        """Send half of the next document's frame, then hang up."""
        self._cut_next = True

    def write(self, data: bytes) -> None:
        """Send frames."""
        if self.half_open or self._closing or not data:
            return
        if not (self.delay_s or self.piece_bytes or self._waiting):
            self._transport.write(data)
            return
        due = self._loop.time() + self.delay_s
        size = self.piece_bytes or len(data)
        self._waiting += ((due, data[at : at + size]) for at in range(0, len(data), size))
        self.waiting_bytes += len(data)
        self._arm()

    def write_messages(self, data: bytes) -> None:
        """Send frames of a stream: faults of a document wait for one."""
        found = _first_document(data) if self._cut_next or self._flip_at is not None else None
        if found is None:
            self.write(data)
            return
        start, end = found
        if self._flip_at is not None:
            changed = bytearray(data)
            changed[start + self._flip_at % (end - start)] ^= 0xFF
            data, self._flip_at = bytes(changed), None
        if self._cut_next:
            self.write(data[: (start + end) // 2])
            self.close()
        else:
            self.write(data)

    def close(self) -> None:
        """Hang up after all that was written has been sent."""
        self._closing = True
        if not self._waiting:
            self._transport.close()

    def stop(self) -> None:
        """Forget what waits: the connection is gone."""
        self._waiting.clear()
        self.waiting_bytes = 0
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self) -> None:
        if self._timer is None and self._waiting:
            self._timer = self._loop.call_at(self._waiting[0][0], self._send_next)

    def _send_next(self) -> None:
        """Send one piece; the next one goes alone, for which the loop has to come round."""
        self._timer = None
        _, piece = self._waiting.popleft()
        self.waiting_bytes -= len(piece)
        assert self.waiting_bytes >= 0
        self._transport.write(piece)
        self._arm()
        if not self._waiting and self._closing:
            self._transport.close()
        elif not self._waiting:
            self._on_sent()


def _first_document(data: bytes) -> tuple[int, int] | None:
    """Return where the first frame of a document begins and ends among whole frames."""
    start = 0
    while (taken := mcbp.take_frame(data, start)) is not None:
        frame, end = taken
        if frame.opcode in _DOCUMENTS:
            return start, end
        start = end
    return None


_DOCUMENTS = frozenset({Op.DCP_MUTATION, Op.DCP_DELETION, Op.DCP_EXPIRATION})
