"""The ring: frames from one feed worker to one batch writer, through shared memory that outlives both.

One producer, one consumer, no lock: each word below has a single writing process, and a process that dies between
any two instructions leaves a ring that its successor can go on with.

    offset  size  field      writer    reader                ordering
    0       8     epoch      producer  consumer              none: frames carry their own epoch, see `Ring.epoch`
    8       8     expected   producer  consumer              none: it only makes the consumer connect anew
    16      8     awaited    producer  consumers             none: see `CommitBell`
    64      8     written    producer  consumer, supervisor  after the frame's bytes; the checksum proves it
    128     8     read       consumer  supervisor            none
    192     8     committed  consumer  producer              after the last use of the frames below it, and after `took`
    200     8     took       consumer  producer              before `committed`
    208     8     refused    consumer  producer              none: the frames that it is about are never committed
    216     8     looks      consumer  producer              before its last look; see `Ring.is_awaited`
    256     n     frames, at byte `position mod n`

`written`, `read` and `committed` are *positions*: bytes since the ring was made, multiples of 8 that never wrap (2^64
bytes last longer than the machine). Always committed <= read <= written <= committed + capacity. Each word has a cache
line to itself, and is moved by one aligned 8-byte store (`memoryview.cast("Q")`; `struct.pack_into` would store byte by
byte, and a kill in between would tear it). `written` is the commit point of a frame: bytes beyond it do not exist.

A frame lies in one piece, at a multiple of 8. One that does not fit before the end of the memory starts at its
beginning instead, and a skip mark takes its place; `written` moves over both at once.

    offset  size  field
    0       4     length of the payload in bytes; 0xFFFFFFFF is a skip mark: go on at the memory's beginning
    4       4     CRC-32 of the payload, seeded with the position
    8       n     payload, then up to 7 bytes of padding

x86 shows stores in their order. Elsewhere a consumer may see `written` before the frame that it covers. The checksum
shows it: its seed makes what an earlier lap left at the same place fail too. The consumer looks again, a bounded number
of times.

Waiting is not the ring's business: see `Bell` and `CommitBell`. The memory is anonymous, made before the fork, and gone
with the last process that has it; no process of another version ever sees it, so the layout has no version.
"""

import mmap
import os
import struct
import time
import zlib
from collections.abc import Sequence
from contextlib import suppress

from channelindex import kernel
from channelindex.errors import InvariantBroken
from workers.pipeline.beats import BEAT_S, UNASKED_S

_EPOCH, _EXPECTED, _AWAITED = 0, 1, 2  # 8 bytes each
_WRITTEN, _READ, _COMMITTED, _TOOK, _REFUSED, _LOOKS_AT_BEATS = 8, 16, 24, 25, 26, 27
_COUNT_BITS = 16
_HEADER_BYTES = 256
_LEAST_CAPACITY = 64
_FRAME_HEAD = struct.Struct("=II")
_SKIP = 0xFFFFFFFF

_LOOKS = 50
_LOOK_AGAIN_S = 0.001
"""Together 50 ms for a store to cross from one core to another. That takes less than a microsecond; a frame that is
still wrong then was damaged, and waiting longer would only hide it."""


class TornFrame(InvariantBroken):
    """A published frame fails its checksum or its layout: something else wrote into the ring's memory."""


class Bell:
    """Wakes a process that sleeps in poll: an eventfd that both sides hold.

    A consumer has one for data, a producer one for space; each is shared by all rings of that process. To lose no
    wake-up, a sleeper clears the bell first, then looks at its rings, and sleeps only if there was nothing. A process
    that takes over from a dead one rings the other side once: the dead one may not have come to it.
    """

    __slots__ = ("_fd",)

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        """Return the descriptor, readable since the bell was rung."""
        return self._fd

    def ring(self) -> None:
        """Wake whoever waits, now or at its next wait. Any number of rings before a `clear` count as one."""
        os.eventfd_write(self._fd, 1)

    def clear(self) -> None:
        """Forget the rings so far."""
        with suppress(BlockingIOError):  # it was not rung
            os.eventfd_read(self._fd)

    def close(self) -> None:
        """Give the descriptor back. May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Ring:
    """Carries frames. Made by the supervisor before it forks; then exactly one process publishes and exactly one takes.

    A process that takes over from a dead one needs nothing but the ring: a producer goes on at `written`, whatever
    its predecessor left beyond it; a consumer calls `reset_consumer` and goes on at `committed`.
    """

    __slots__ = ("_crc32", "_frames", "_words", "capacity", "max_payload")

    def __init__(self, capacity: int) -> None:
        """Make an empty ring with room for *capacity* bytes of frames, rounded down to a multiple of 16."""
        if capacity < _LEAST_CAPACITY:
            raise ValueError(f"ring of {capacity} bytes, at least {_LEAST_CAPACITY} are needed")
        self.capacity = capacity // 16 * 16
        self.max_payload = self.capacity // 2 - _FRAME_HEAD.size
        """The longest payload. Half of the ring always fits once it is empty, wherever the end of the memory falls."""
        compiled = kernel.chosen()
        self._crc32 = zlib.crc32 if compiled is None else compiled.crc32
        memory = memoryview(mmap.mmap(-1, _HEADER_BYTES + self.capacity))
        self._words = memory[:_HEADER_BYTES].cast("Q")
        self._frames = memory[_HEADER_BYTES:]

    @property
    def epoch(self) -> int:
        """The producer's present epoch, which it sets before it publishes. Frames of lower ones are to be skipped."""
        return self._words[_EPOCH]

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._words[_EPOCH] = epoch

    @property
    def expected_servers(self) -> int:
        """The servers of the store, by their digest, that the producer knows; 0 for none yet. Set by it alone."""
        return self._words[_EXPECTED]

    @expected_servers.setter
    def expected_servers(self, digest: int) -> None:
        self._words[_EXPECTED] = digest

    @property
    def awaited(self) -> int:
        """The position up to which the producer waits for a commit, set by it alone; a committed one: for the next."""
        return self._words[_AWAITED]

    @awaited.setter
    def awaited(self, position: int) -> None:
        self._words[_AWAITED] = position

    @property
    def took(self) -> int:
        """The digest of the servers that took the frames below `committed`, and a count of the changes of it."""
        return self._words[_TOOK]

    def took_of(self, digest: int) -> int:
        """The value of `took` after the servers with *digest* took something: unchanged if they were the last ones."""
        took = self._words[_TOOK]
        assert 0 <= digest < 1 << 64 - _COUNT_BITS, "it shares a word with the count"
        if took >> _COUNT_BITS == digest:
            return took
        return digest << _COUNT_BITS | (took + 1) & ((1 << _COUNT_BITS) - 1)

    @property
    def refused(self) -> int:
        """The newest epoch of which the store refused frames that the consumer did not commit; 0 for none."""
        return self._words[_REFUSED]

    def refuse(self, epoch: int) -> None:
        """Leave what was taken uncommitted, because the store refused frames of *epoch*. Consumer only."""
        assert epoch > 0, "0 stands for none"
        self._words[_READ] = self._words[_COMMITTED]
        self._words[_REFUSED] = epoch

    def look_at_beats(self, *, looks: bool) -> None:
        """Tell the producer whether we look after each beat of our own accord.

        Consumer only. Once it does not any more, it looks again before it sleeps.
        """
        self._words[_LOOKS_AT_BEATS] = looks

    def is_awaited(self, now: float) -> bool:
        """Return true if the consumer will look at what was published by *now* (monotonic seconds) without a bell."""
        return self._words[_LOOKS_AT_BEATS] != 0 and now % BEAT_S < UNASKED_S

    @property
    def written(self) -> int:
        """The position after the last published frame."""
        return self._words[_WRITTEN]

    @property
    def read(self) -> int:
        """The position after the last frame that the consumer took."""
        return self._words[_READ]

    @property
    def committed(self) -> int:
        """The position below which every frame is done with, and its room free again."""
        return self._words[_COMMITTED]

    @property
    def fill(self) -> int:
        """Bytes that are taken up by frames that are not committed."""
        return self._words[_WRITTEN] - self._words[_COMMITTED]

    @property
    def free(self) -> int:
        """Bytes that are not taken up. A frame needs its payload, its head, and sometimes a skipped end of memory."""
        return self.capacity - self.fill

    def try_publish(self, payload: bytes) -> int | None:
        """Publish *payload* as one frame. Producer only; rings no bell.

        Returns:
            The position after it, for comparison with `committed`; None when there is no room now.

        Raises:
            ValueError: it is longer than `max_payload` and would never be sure to fit.
        """
        length = len(payload)
        if length > self.max_payload:
            raise ValueError(f"payload of {length} bytes, this ring takes {self.max_payload}: raise workers.ring_bytes")
        written = self._words[_WRITTEN]
        assert not written % 8, "a frame begins at a whole word"
        room_to_end = self.capacity - written % self.capacity
        size = _frame_bytes(length)
        start = written if size <= room_to_end else written + room_to_end
        if start + size - self._words[_COMMITTED] > self.capacity:
            return None
        if start != written:
            self._put_head(written, _SKIP, b"")
        offset = self._put_head(start, length, payload)
        self._frames[offset : offset + length] = payload
        self._words[_WRITTEN] = start + size
        return start + size

    def _put_head(self, position: int, length: int, payload: bytes) -> int:
        """Write a frame's head; return the offset of what follows it."""
        assert not position % 8, "a frame begins at a whole word"
        offset = position % self.capacity
        _FRAME_HEAD.pack_into(self._frames, offset, length, self._crc32(payload, _seed(position)))
        return offset + _FRAME_HEAD.size

    def take(self, max_bytes: int) -> list[memoryview]:
        """Take the next payloads, in order, *max_bytes* together or one longer one. Consumer only; never blocks.

        They are views into the ring, valid until `commit`. Empty when there is nothing.

        Raises:
            TornFrame: a frame is damaged; nothing was taken.
        """
        position, written = self._words[_READ], self._words[_WRITTEN]
        payloads: list[memoryview] = []
        n_bytes = 0
        while position < written:
            payload, after = self._look(position, written)
            if payload is not None:
                n_bytes += len(payload)
                if payloads and n_bytes > max_bytes:
                    break
                payloads.append(payload)
            position = after
        assert position <= written, "nothing was published there"
        self._words[_READ] = position
        return payloads

    def _look(self, position: int, written: int) -> tuple[memoryview | None, int]:
        """Return the payload of the frame at *position*, None for a skip mark, and the position after it."""
        for _ in range(_LOOKS):
            offset = position % self.capacity
            length, checksum = _FRAME_HEAD.unpack_from(self._frames, offset)
            if length == _SKIP:
                after = position + self.capacity - offset
                if after <= written and checksum == self._crc32(b"", _seed(position)):
                    return None, after
            elif length <= written - position - _FRAME_HEAD.size:
                start = offset + _FRAME_HEAD.size
                payload = self._frames[start : start + length]
                if checksum == self._crc32(payload, _seed(position)):
                    return payload, position + _frame_bytes(length)
            time.sleep(_LOOK_AGAIN_S)
        raise TornFrame(
            f"ring frame at position {position} (written {written}, capacity {self.capacity}): "
            f"length {length}, checksum 0x{checksum:08x} does not match its bytes"
        )

    def commit(self, servers: int = 0) -> None:
        """Give back the room of everything taken, which the *servers* with that digest took; 0 if nothing was written.

        Consumer only; the views that `take` gave are invalid from here.
        """
        if servers:
            self._words[_TOOK] = self.took_of(servers)
        assert self._words[_COMMITTED] <= self._words[_READ] <= self._words[_WRITTEN]
        self._words[_COMMITTED] = self._words[_READ]

    def check(self) -> None:
        """Assert what holds after every step of either side."""
        assert self.committed <= self.read <= self.written <= self.committed + self.capacity
        assert self.written % 8 == self.read % 8 == self.committed % 8 == 0
        assert self.fill + self.free == self.capacity

    def reset_consumer(self) -> None:
        """Start a new consumer: what its predecessor took and did not commit will be taken again."""
        self._words[_READ] = self._words[_COMMITTED]
        self._words[_LOOKS_AT_BEATS] = 0
        assert self._words[_READ] <= self._words[_WRITTEN]


class CommitBell:
    """The bell of a feed worker as batch writers ring it: once all have committed what it waits for, not for each.

    What it waits for is a position in each of its rings (`Ring.awaited`): where its oldest round ends, or what is
    committed already, where any commit gives it the room that it needs. It sets them before it looks at what is
    committed, and a writer looks at them after its own commit, so the last one to commit always rings.

    Two writers that commit at the same moment could each miss the commit of the other, which takes nanoseconds from one
    core to another. Then no bell rings, and the feed worker finds the commits when it wakes for its next read, or after
    `feed_worker.MAX_WAIT_S`.
    """

    __slots__ = ("_bell", "_rings")

    def __init__(self, bell: Bell, rings: Sequence[Ring]) -> None:
        """*rings* are all that lead from the feed worker, by batch writer."""
        assert rings, "a feed worker has a ring to each batch writer"
        self._bell = bell
        self._rings = rings

    def ring(self) -> None:
        """Wake the feed worker, whatever it waits for."""
        self._bell.ring()

    def ring_if_awaited(self) -> None:
        """Wake the feed worker if everything that it waits for is committed."""
        if all(ring.committed >= ring.awaited for ring in self._rings):
            self._bell.ring()


def _frame_bytes(length: int) -> int:
    """Return the room in bytes that a frame with a payload of *length* takes."""
    return _FRAME_HEAD.size + (length + 7) // 8 * 8


def _seed(position: int) -> int:
    """Return where the checksum of a frame at *position* starts: another value on each lap over the same place."""
    return position >> 3 & 0xFFFFFFFF
