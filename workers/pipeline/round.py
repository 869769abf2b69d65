"""From events to what each batch writer must append: the pure middle of the feed worker.

A *round* is what the worker makes of the events it could read at once. It is sealed into ring frames, and becomes
stable when every batch writer has committed them. Work per event is one decode and one append per channel; all
else is done once per channel and round.

Where the compiled kernel is in use, it takes in what it understands of the events, and holds the entries of the round.
Each event that it leaves is taken in here, in its turn, so that entries keep the order of the feed.
"""

import time
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from channelindex import blocks, kernel
from channelindex.decode.base import Decoder
from channelindex.decode.removals import RemovalMemory
from channelindex.decode.sync_gateway import SyncGatewayDecoder
from channelindex.feeds.base import (
    ADVANCED,
    EXPIRATION,
    HISTORY,
    ROLLBACK,
    SNAPSHOT,
    Event,
    Events,
)
from channelindex.feeds.position import Position
from channelindex.model import DELETED, REMOVED, Checkpoint, Principal, Removal, Route
from channelindex.stores.base import Quarantined
from workers.pipeline.frames import Sections

_REASON_CHARACTERS = 500
"""Characters kept of the reason for a quarantine: an operator's own decoder may quote a whole document."""


class Round(NamedTuple):
    """The entries of some events. `sections` and `principals` are by batch writer.

    A section is what the round adds to one channel: packed entries in the order of the feed. `frames.mapping_of` and
    `frames.pack_frames` know both forms in which they come.
    """

    sections: Sequence[Sections]
    principals: list[list[str]]
    checkpoints: dict[int, Checkpoint]
    quarantined: list[Quarantined]
    n_events: int
    n_entries: int


class RoundBuilder:
    """Takes events in, gives rounds out. Keeps the position of every vbucket across rounds."""

    def __init__(self, decoder: Decoder, n_writers: int, checkpoints: Mapping[int, Checkpoint]) -> None:
        assert n_writers > 0
        self._decode = decoder.decode
        self._n_writers = n_writers
        self._removals = RemovalMemory()
        self._positions = {vb: Position(checkpoint) for vb, checkpoint in checkpoints.items()}
        self._compiled = _compiled_entries(decoder, n_writers)
        self.rollbacks: dict[int, Checkpoint] = {}
        """Rollbacks of the source: by vbucket the checkpoint to resume at in a new epoch. Their events end with it."""
        self.rollback_since: float | None = None
        """Time of the first of them, in monotonic seconds."""
        self._start_round()

    def begin(self, checkpoints: Mapping[int, Checkpoint]) -> None:
        """Take events of these vbuckets too, from their checkpoints on."""
        assert self._positions.keys().isdisjoint(checkpoints), "what was read of it would be forgotten"
        self._positions.update({vb: Position(checkpoint) for vb, checkpoint in checkpoints.items()})
        self._removals.clear()  # others may have indexed newer versions of these vbuckets' documents since

    def forget(self, vbuckets: Iterable[int]) -> None:
        """Forget these vbuckets: no event of them comes any more, and none of the present round is theirs."""
        for vb in vbuckets:
            assert vb not in self._touched, "its part of the round would be lost"
            del self._positions[vb]

    def holds_any(self, vbuckets: Iterable[int]) -> bool:
        """Return whether the present round has events of any of *vbuckets*."""
        return not self._touched.isdisjoint(vbuckets)

    def _start_round(self) -> None:
        self._sections: defaultdict[str, list[bytes]] = defaultdict(list)
        self._principals: list[list[str]] = [[] for _ in range(self._n_writers)]
        self._touched: set[int] = set()
        self._quarantined: list[Quarantined] = []
        self.n_events = 0
        """Events since the last round was taken."""

    def add(self, events: Iterable[Event]) -> None:
        """Take over *events*, in their order."""
        if self._compiled is None:
            self._add(events)
            return
        given: Events = self._compiled.events_of(events)
        at = self._add_compiled(given, 0)
        while at < len(given):
            event = given[at]
            if event[0] > EXPIRATION:
                self._note(event)
            else:
                self._add_left(event)
            at = self._add_compiled(given, at + 1)

    def _add_left(self, event: Event) -> None:
        """Take over a document that the kernel left."""
        self._add([event])
        for channel, section in self._sections.items():
            for packed in section:
                self._compiled.append(channel, packed)
        self._sections.clear()

    def _add_compiled(self, given: Events, at: int) -> int:
        """Take over events from the one at *at* on; the place of the first that is left, or behind the last."""
        left_at: int
        left_at, n_documents = self._compiled.add(given, at, self._positions, self._touched, self._removals)
        assert left_at >= at + n_documents, "the others are snapshot markers"
        self.n_events += n_documents
        return left_at

    def _add(self, events: Iterable[Event]) -> None:
        positions, touched, decode, pack = self._positions, self._touched, self._decode, blocks.pack_fields
        sections, removals = self._sections, self._removals
        at_vb, n_documents = -1, 0
        for event in events:
            if event[0] > EXPIRATION:
                self._note(event)
                continue
            kind, vb, seqno, key, datatype, value = event
            if vb != at_vb:
                position, at_vb = positions[vb], vb
                touched.add(vb)
            position.seqno = seqno
            n_documents += 1
            try:
                decoded = decode(kind, key, datatype, value)
                if isinstance(decoded, Route):
                    entry, channels = pack(vb, seqno, key, decoded.rev, decoded.flags), decoded.channels
                    if removals.is_empty and not any(channels.values()):
                        for channel in channels:
                            sections[channel].append(entry)
                    else:
                        self._add_with_removals(vb, seqno, key, decoded, entry)
                elif decoded is not None:
                    self._add_principal(decoded)
            except Exception as error:  # noqa: BLE001 one document, or the operator's own decoder, must not stop a feed
                self._quarantined.append(Quarantined(vb, seqno, key, _reason(key, error), time.time()))
        self.n_events += n_documents

    def _add_with_removals(self, vb: int, seqno: int, key: bytes, route: Route, entry: bytes) -> None:
        """Take over a version that has removals, or may follow on one that had; *entry* is for its channels."""
        due = self._removals.due(vb, key, route)
        for channel, removal in route.channels.items():
            if removal is None:
                self._sections[channel].append(entry)
            elif channel in due:
                self._sections[channel].append(_pack_removal(vb, seqno, key, removal))

    def _add_principal(self, principal: Principal) -> None:
        self._principals[shard_of(principal.key, self._n_writers)].append(principal.key)

    def _note(self, event: Event) -> None:
        kind, vb = event[0], event[1]
        position = self._positions[vb]
        if kind == SNAPSHOT:
            position.enter_snapshot(*event[2:])
        elif kind == ADVANCED:
            position.seqno = event[2]
            self._touched.add(vb)
            self.n_events += 1
        elif kind == HISTORY:
            position.failover_log = event[2]
        elif kind == ROLLBACK:
            self.rollbacks[vb] = position.rolled_back(event[2])
            self._removals.clear()
            self.rollback_since = self.rollback_since or time.monotonic()

    def seqnos(self) -> dict[int, int]:
        """Return how far each vbucket has been read."""
        return {vb: position.seqno for vb, position in self._positions.items()}

    def check(self) -> None:
        """Assert what holds after every step."""
        assert self._touched <= self._positions.keys()
        assert self.n_events >= len(self._touched), "each vbucket of the round had an event"
        assert self.rollbacks.keys() <= self._positions.keys()
        assert bool(self.rollbacks) == (self.rollback_since is not None)
        assert self._compiled is None or not self._sections, "the kernel keeps the entries of the round"
        for position in self._positions.values():
            position.check()

    def take(self) -> Round | None:
        """Take the round of all events added since the last call; None if no seqno moved."""
        if not self._touched:
            return None
        sections, n_entries = self._by_writer() if self._compiled is None else self._compiled.take()
        taken = Round(
            sections,
            self._principals,
            {vb: self._positions[vb].checkpoint() for vb in self._touched},
            self._quarantined,
            self.n_events,
            n_entries,
        )
        assert len(taken.sections) == len(taken.principals) == self._n_writers, "a part for each batch writer"
        assert taken.n_events >= len(taken.checkpoints), "each vbucket of the round had an event"
        self._start_round()
        return taken

    def _by_writer(self) -> tuple[Sequence[Sections], int]:
        n_writers = self._n_writers
        by_writer: list[dict[str, list[bytes]]] = [{} for _ in range(n_writers)]
        for channel, section in self._sections.items():
            by_writer[shard_of(channel, n_writers)][channel] = section
        return by_writer, sum(map(len, self._sections.values()))


def shard_of(name: str, n_shards: int) -> int:
    """The batch writer, 0 to n_shards - 1, that writes a channel or a principal's counter.

    Taken from other bits of the hash than `blocks.slot_of`, so that a writer's channels spread over all slots.
    """
    return (zlib.crc32(name.encode()) >> 8) % n_shards


def _compiled_entries(decoder: Decoder, n_writers: int) -> Any:
    """The collector of entries in the compiled kernel, which knows our own decoder alone; None where Python does it."""
    compiled = kernel.chosen()
    if compiled is None or type(decoder) is not SyncGatewayDecoder:
        return None
    return compiled.Entries(decoder.star_channel, n_writers)


def _pack_removal(vb: int, seqno: int, key: bytes, removal: Removal) -> bytes:
    """Pack the entry that takes a document out of a channel."""
    flags = REMOVED | (DELETED if removal.deleted else 0)
    return blocks.pack_fields(vb, seqno, key, removal.rev, flags)


def _reason(key: bytes, error: Exception) -> str:
    """Say why a document is in quarantine, as text that every store takes."""
    if len(key) > blocks.MAX_KEY_BYTES:
        return f"key of {len(key)} bytes, at most {blocks.MAX_KEY_BYTES} can be indexed"
    text = f"{type(error).__name__}: {error}"[:_REASON_CHARACTERS]
    return text.encode(errors="backslashreplace").decode()
