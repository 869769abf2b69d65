"""Compacts an index: finds the channels that are due and compacts them, those with most to win first."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from channelindex.compaction.channel import ChannelCompactor, ChannelResult
from channelindex.compaction.due import DueChannel, Extent, due
from channelindex.compaction.pruning import PRUNED_AT_ONCE, prunings
from channelindex.compaction.rest import Rest
from channelindex.compaction.view import CompactionView, take_view
from channelindex.errors import IndexCorrupt, StaleEpoch, Transient
from channelindex.model import STAR_CHANNEL
from channelindex.settings import CompactionSettings
from channelindex.stores.base import IndexReader
from channelindex.stores.compacting import STRAY_S, ChannelSizes, CompactionStore

VIEW_S = 300.0
"""Age at which a view is taken anew, if not after `min_lag_s` already: what settled since may leave, too."""

_CHANNELS_AT_ONCE = 500
"""Directories in one request, some milliseconds of the store."""

_FENCE_ATTEMPTS = 20
"""Views in a row that became stale before they were fenced; each means that a partition changed its owner."""


class SeenSizes(NamedTuple):
    """Sums over the directories of the last look: channels, bytes in all blocks, bytes that compaction left."""

    n_channels: int = 0
    n_bytes: int = 0
    live_bytes: int = 0


class Compactor:
    """Compacts one index. *pause* is called between requests, and may raise to stop."""

    def __init__(
        self,
        store: CompactionStore,
        reader: IndexReader,
        settings: CompactionSettings,
        block_bytes: int,
        pause: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._reader = reader
        self._settings = settings
        self._block_bytes = block_bytes
        self._pause = pause
        self._clock = clock
        self._channels = ChannelCompactor(store, reader, block_bytes, settings.grace_s, pause)
        self._view: CompactionView | None = None
        self._view_at = 0.0
        self._rest = Rest()
        self.seen = SeenSizes()
        """Of the last call of `find_due`."""

    def find_due(self, channels: Iterable[str], *, tidies: bool = False) -> list[DueChannel]:
        """Those of *channels* that are due, in the order in which to compact them: the star channel, then by gain.

        A damaged channel is due last of all: `compact` says what is wrong with it. Where it *tidies*, the store
        reserves no more behind the active blocks of those that rest than it has to, and what compactors that died have
        left is swept.
        """
        present = frozenset(self._reader.stable_view().epochs)
        found: list[DueChannel] = []
        n_channels = n_bytes = live_bytes = 0
        if tidies:
            self._rest.look()
        for chunk in _chunks(channels, _CHANNELS_AT_ONCE):
            now_s = self._clock()
            sizes_by_channel, damaged = self._sizes(chunk)
            if tidies:
                self._tidy(sizes_by_channel, now_s)
            for channel, sizes in sizes_by_channel.items():
                n_bytes += sizes.n_bytes
                live_bytes += sizes.compacted.live
                one = due(channel, sizes, present, self._block_bytes, self._settings, now_s)
                found += [one] if one else []
            found += [DueChannel(channel, Extent.FULL, gain=0) for channel in damaged]
            n_channels += len(sizes_by_channel) + len(damaged)
            self._pause()
        self.seen = SeenSizes(n_channels, n_bytes, live_bytes)
        return sorted(found, key=lambda each: (each.channel != STAR_CHANNEL, -each.gain))

    def _sizes(self, channels: Sequence[str]) -> tuple[dict[str, ChannelSizes], Sequence[str]]:
        """The sizes of *channels* that are there, and those whose directories are damaged: the others go on."""
        try:
            sizes = self._store.sizes(channels)
        except IndexCorrupt:
            if len(channels) == 1:
                return {}, channels
            known: dict[str, ChannelSizes] = {}
            damaged: list[str] = []
            for channel in channels:
                its_sizes, its_damage = self._sizes([channel])
                known |= its_sizes
                damaged += its_damage
            return known, damaged
        return {name: one for name, one in zip(channels, sizes, strict=True) if one is not None}, ()

    def _tidy(self, sizes_by_channel: Mapping[str, ChannelSizes], now_s: float) -> None:
        """See `find_due`. A block that grows is left alone: it needs the room, and a replica is sent it whole."""
        self._store.give_back(self._rest.resting(sizes_by_channel))
        since = int(now_s) - STRAY_S
        for channel, sizes in sizes_by_channel.items():
            if sizes.unswept_at is not None and sizes.unswept_at < since:
                self._store.sweep(channel, int(self._settings.grace_s), since)

    def is_due(self, channel: str) -> bool:
        """True if *channel* is due now."""
        present = frozenset(self._reader.stable_view().epochs)
        sizes_by_channel, damaged = self._sizes([channel])
        return bool(damaged) or any(
            due(channel, sizes, present, self._block_bytes, self._settings, self._clock())
            for sizes in sizes_by_channel.values()
        )

    def compact(self, channel: str, extent: Extent = Extent.FULL, *, dry_run: bool = False) -> ChannelResult:
        """Compact *channel*, due or not.

        Raises:
            Transient: the store is away; what was done is whole.
        """
        view = self._take_view(dry_run=dry_run)
        result = self._channels.compact(channel, extent, view, self._clock(), dry_run=dry_run)
        if result.outcome == "refused":
            self._view = None  # the store may have been replaced, and have lost what the view was fenced with
        return result

    def prune(self, channels: Callable[[], Iterable[str]], least: int = PRUNED_AT_ONCE) -> int:
        """Prune the archives of epochs if *least* starts of one are needed no more; the number that went.

        A start is needed as long as there may be an entry that it took back. So all *channels* are read, and what was
        dead for long leaves each of them, before anything is pruned. A channel of which that cannot be said for certain
        ends it; so does one that others compact meanwhile, until the next time, and a store that is replaced: what left
        the channels may be there again.
        """
        assert least > 0, "to prune nothing reads everything"
        view = self._take_view(dry_run=False)
        servers = self._store.servers()
        archives = self._reader.archived_starts(range(view.meta.n_partitions))
        found = prunings(view.records, archives, view.prunable, least)
        if not found:
            return 0
        for channel in channels():
            view = self._take_view(dry_run=False)
            result = self._channels.compact(channel, Extent.FULL, view, self._clock(), all_dead=True)
            if result.long_dead_left or result.outcome not in ("compacted", "unchanged", "gone"):
                return 0
            self._pause()
        if self._store.servers() != servers:
            return 0
        pruned = 0
        for partition, before, after in found:
            if self._store.prune(partition, before, after):
                pruned += len(before) - len(after)
        return pruned

    def _take_view(self, *, dry_run: bool) -> CompactionView:
        """A view that is not too old, and fenced unless *dry_run*."""
        now_s = self._clock()
        if self._view is not None and 0 <= now_s - self._view_at < min(VIEW_S, self._settings.min_lag_s):
            return self._view
        for _ in range(_FENCE_ATTEMPTS):
            view = take_view(self._reader, self._settings, now_s)
            if dry_run:
                return view
            try:
                view.fence(self._store)
            except StaleEpoch:
                continue
            self._view, self._view_at = view, now_s
            return view
        raise Transient(f"partitions changed their owners {_FENCE_ATTEMPTS} times while a view of them was taken")


def _chunks(channels: Iterable[str], size: int) -> Iterator[Sequence[str]]:
    assert size > 0
    iterator = iter(channels)
    while chunk := list(islice(iterator, size)):
        yield chunk
