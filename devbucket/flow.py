"""Flow control and liveness of one DCP connection: two small state machines. No I/O, time is given.

Source: couchbase/kv_engine docs/dcp/documentation/flow-control.md and dead-connections.md, and recordings of a server.
"""

import struct
import sys

from channelindex import mcbp
from channelindex.mcbp import Op
from devbucket.replies import HangUp

DEFAULT_NOOP_INTERVAL_S = 20.0
SHORTEST_NOOP_INTERVAL_S = 1.0
"""An interval of 0 is accepted; a real server looks at the time once a second."""

_FIRST_OPAQUE = 10_000_001


class FlowWindow:
    """Counts the bytes of stream messages that the client lets us send before it acknowledges some.

    Counted are whole frames of markers, documents and stream ends. One message may overshoot.
    """

    def __init__(self) -> None:
        self.buffer_bytes = 0  # 0: the client wants no flow control
        self.outstanding = 0

    def room(self) -> int:
        """Return bytes that may be sent now."""
        return self.buffer_bytes - self.outstanding if self.buffer_bytes else sys.maxsize

    def sent(self, n_bytes: int) -> None:
        """Count messages that were sent."""
        assert n_bytes >= 0
        if self.buffer_bytes:
            self.outstanding += n_bytes

    def acknowledged(self, n_bytes: int) -> None:
        """Count an acknowledgement; too much of it is tolerated."""
        assert n_bytes >= 0
        self.outstanding = max(0, self.outstanding - n_bytes)


class NoopKeeper:
    """Sends a no-op each interval, one at a time, and detects a dead client: not one frame for too long."""

    def __init__(self, idle_timeout_s: float, now: float) -> None:
        assert idle_timeout_s > 0
        self.enabled = False
        self._interval_s = DEFAULT_NOOP_INTERVAL_S
        self._idle_timeout_s = idle_timeout_s
        self._opaque = _FIRST_OPAQUE
        self._pending = False
        self._heard_at = now
        self._sent_at = now

    def set_interval(self, interval_s: float) -> None:
        """Set the time between no-ops."""
        self._interval_s = max(SHORTEST_NOOP_INTERVAL_S, interval_s)

    def enable(self, now: float, *, on: bool) -> None:
        """Start or stop sending no-ops."""
        self.enabled = on
        self._sent_at = now

    def heard(self, now: float) -> None:
        """Some frame arrived: the client lives."""
        assert now >= self._heard_at, "time goes on"
        self._heard_at = now

    def answered(self, opaque: int) -> None:
        """Take the client's answer to a no-op.

        Raises:
            HangUp: it is not the answer that we wait for.
        """
        if not self._pending or opaque != self._wire_opaque():
            raise HangUp("unexpected no-op response")
        self._pending = False
        self._opaque += 1
        assert self._opaque < 1 << 32, "it is 32 bits on the wire"

    def deadline(self) -> float | None:
        """Return when `tick` has something to do; None: never."""
        if not self.enabled:
            return None
        dead_at = self._heard_at + self._idle_timeout_s
        return dead_at if self._pending else min(dead_at, self._sent_at + self._interval_s)

    def tick(self, now: float) -> bytes:
        """Return the no-op that is due, or nothing.

        Raises:
            HangUp: the client is dead.
        """
        deadline = self.deadline()
        if deadline is None or now < deadline:
            return b""
        if now >= self._heard_at + self._idle_timeout_s:
            raise HangUp("client is dead")
        assert not self._pending, "one at a time"
        self._pending = True
        self._sent_at = now
        return mcbp.pack_request(Op.DCP_NOOP, opaque=self._wire_opaque())

    def _wire_opaque(self) -> int:
        """Return the opaque as a little-endian server puts it on the wire, which clients must echo unchanged."""
        (swapped,) = struct.unpack(">I", struct.pack("<I", self._opaque))
        return int(swapped)
