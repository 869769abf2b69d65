"""The heartbeat board: what every child last said of itself, in shared memory made before the fork.

A child has one slot of 64-bit words, which it alone writes while it lives; the supervisor reads them without asking.
Word i of a slot is the i-th name of its role's row in `FIELDS_BY_ROLE`, and moves by one 8-byte store. Words of one
slot may be of slightly different times: they are for eyes and thresholds, never for a decision that must be exact.
"""

import mmap
import os
import time

FEED_WORKER = "feed_worker"
BATCH_WRITER = "batch_writer"
LEASE_KEEPER = "lease_keeper"

_COMMON = ("pid", "started_ns", "beat_ns", "store_errors")
"""`started_ns` and `beat_ns` are of the monotonic clock, which is the same in all processes of a machine."""

FIELDS_BY_ROLE: dict[str, tuple[str, ...]] = {
    FEED_WORKER: (
        *_COMMON,
        "epoch",
        "events",  # taken from the source in this life
        "entries",  # that they became
        "in_flight",  # events that are not stable yet
        "lag",  # seqnos between the source's newest and the stable clock, over all vbuckets
        "connected",  # 1 while every stream runs
        "stalls",  # turns on which a ring had no room
        "quarantined",  # documents that could not be decoded
    ),
    BATCH_WRITER: (
        *_COMMON,
        "batches",
        "frames",
        "channels",  # appends, one per channel and batch
        "entry_bytes",
        "ring_fill",  # bytes that wait in all its rings
    ),
    LEASE_KEEPER: _COMMON,
}

_WORD = 8
_SLOT_WORDS = 32
"""Four cache lines: two children never write to the same one."""


class Slot:
    """One child's words. Made by the supervisor, written by the child as long as it lives."""

    __slots__ = ("_index_by_name", "_words", "role")

    def __init__(self, role: str, words: memoryview) -> None:
        self.role = role
        self._words = words
        self._index_by_name = {name: index for index, name in enumerate(FIELDS_BY_ROLE[role])}

    def start(self) -> None:
        """All words 0, but for the time and the caller's process id.

        The supervisor calls it before the fork, or it would take the predecessor's last beat for the new child's; the
        child calls it again, for its own process id.
        """
        for index in range(len(self._words)):
            self._words[index] = 0
        now_ns = time.monotonic_ns()
        self.set(pid=os.getpid(), started_ns=now_ns, beat_ns=now_ns)

    def beat(self) -> None:
        """The main loop turned once more."""
        self._words[self._index_by_name["beat_ns"]] = time.monotonic_ns()

    def set(self, **values: int) -> None:
        """Replace the named words."""
        for name, value in values.items():
            self._words[self._index_by_name[name]] = value

    def add(self, **counts: int) -> None:
        """Raise the named words."""
        for name, count in counts.items():
            self._words[self._index_by_name[name]] += count

    def get(self, name: str) -> int:
        """The named word."""
        return self._words[self._index_by_name[name]]

    def silent_s(self, now_ns: int) -> float:
        """Seconds from the last beat, or the start, to *now_ns* (`time.monotonic_ns`)."""
        return (now_ns - self.get("beat_ns")) / 1e9

    def as_dict(self) -> dict[str, int]:
        """All words by name."""
        return {name: self._words[index] for name, index in self._index_by_name.items()}


def make_board(roles: list[str]) -> list[Slot]:
    """One slot per role in *roles*, all words 0, in shared memory that is gone with the last process that has it."""
    memory = memoryview(mmap.mmap(-1, max(1, len(roles)) * _SLOT_WORDS * _WORD)).cast("Q")
    return [Slot(role, memory[number * _SLOT_WORDS : (number + 1) * _SLOT_WORDS]) for number, role in enumerate(roles)]
