"""Knows channels of which all has been seen, so that a look reads those alone that have changed since."""

from collections.abc import Sequence
from itertools import compress

from channelindex.reading.snapshot import IndexSnapshot
from channelindex.stores.base import ChannelState, ChannelWatch, IndexReader


class ChannelsAtRest:
    """Notes channels, and returns which of them may have something new. For one thread.

    A store that can be watched says what has changed, whatever is followed. Of another one, all that is noted is
    compared. A look calls `begin`, takes its snapshot, calls `awake`, reads these channels, calls `note`; it reads by
    what `begin` has returned.
    """

    def __init__(self, store: IndexReader) -> None:
        self._store = store
        self._can_watch = True
        self._watch: ChannelWatch | None = None
        self._noted: set[str] = set()  # of a store that is watched
        self._marks: dict[str, bytes] = {}  # of another one

    def begin(self) -> IndexReader:
        """Begin a look; return the store that it has to read by."""
        if self._watch is not None and not (self._can_watch and self._watch.is_whole):
            self.close()
        if self._watch is None and self._can_watch:
            self._watch = self._store.watch()
            self._can_watch = self._watch is not None
        return self._store if self._watch is None else self._watch.reader

    def awake(self, channels: Sequence[str], counter: int) -> list[str]:
        """Those of *channels* that may have something that they had not, or not visibly, when they were noted.

        *counter* is the stable counter to which the snapshot is to belong, or one before it; it was read since the last
        look.
        """
        if self._watch is None:
            return self._compared(channels)
        changed = self._watch.changed(counter)
        if changed is None:
            self.forget()
            self._can_watch = False  # this look goes on by it: its snapshot is of that server
            return list(channels)
        self._noted.difference_update(changed)
        if len(self._noted) > len(channels):
            self._noted.intersection_update(channels)
        return [channel for channel in channels if channel not in self._noted]

    def _compared(self, channels: Sequence[str]) -> list[str]:
        noted = [channel for channel in channels if channel in self._marks]
        marks = [self._marks[channel] for channel in noted]
        is_changed = self._store.changed(marks) if marks else ()
        at_rest = [not is_other for is_other in is_changed]
        self._marks = {channel: self._marks[channel] for channel in compress(noted, at_rest)}
        return [channel for channel in channels if channel not in self._marks]

    def note(self, channels: Sequence[str], states: Sequence[ChannelState | None], snapshot: IndexSnapshot) -> None:
        """Note those of *channels* of which all is visible: until they change, they need not be read."""
        for channel, state in zip(channels, states, strict=True):
            if not snapshot.shows_all(state):
                continue
            if self._watch is not None:
                self._noted.add(channel)
            elif (mark := self._store.mark(channel, state)) is not None:
                self._marks[channel] = mark

    def forget(self) -> None:
        """Forget all notes."""
        self._noted.clear()
        self._marks.clear()

    def close(self) -> None:
        """Forget all notes, and end the watch; the next look begins another one. May be called twice."""
        self.forget()
        if self._watch is not None:
            self._watch.close()
            self._watch = None
