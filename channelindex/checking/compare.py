"""Compares what readers of two indexes get, channel by channel, whatever stores they are in."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from channelindex.errors import IndexMismatch
from channelindex.model import Entry
from channelindex.reading.query import document_id
from channelindex.reading.retained import CHANNELS_PER_READ, Retained, read_retained
from channelindex.reading.snapshot import IndexSnapshot
from channelindex.stores.base import IndexReader

MAX_DETAILS = 100
"""Differences that a report describes; all are counted."""

_DocumentKey = tuple[int, bytes]
"""(vbucket, key)."""


@dataclass(frozen=True)
class Difference:
    """One document of one channel. `left` and `right` are [revision, seqno, flags], None where it is not there."""

    kind: str
    channel: str
    id: str
    left: tuple[str, int, int] | None
    right: tuple[str, int, int] | None


@dataclass(frozen=True)
class Comparison:
    """The counts and differences of one comparison; `dataclasses.asdict` of it is JSON.

    `missing`: left has it and right has not. `extra`: right has it and left has not. `different`: another revision,
    seqno or flags. `in_flux`: beyond the stable clock of either. `forgotten`: older than what either retains.
    `differences_by_channel` has the first three of each channel that has any.
    """

    channels: int = 0
    left_entries: int = 0
    right_entries: int = 0
    missing: int = 0
    extra: int = 0
    different: int = 0
    in_flux: int = 0
    forgotten: int = 0
    differences_by_channel: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    details: tuple[Difference, ...] = ()

    @property
    def ok(self) -> bool:
        """True if readers of both get the same."""
        return not (self.missing or self.extra or self.different)


def compare(
    left: IndexReader,
    right: IndexReader,
    channels: Iterable[str] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,  # noqa: ARG005 nobody looks
) -> Comparison:
    """Compare *channels*, or all that either has. Both indexes may be written meanwhile.

    *progress* is called now and then with the number of channels that are compared, and of all.

    Raises:
        IndexMismatch: they are not of the same bucket.
        IndexCorrupt, IndexMissing, StoreUnavailable: see `IndexReader`.
    """
    ours, theirs = left.meta(), right.meta()
    if (ours.source_uuid, ours.n_vbuckets) != (theirs.source_uuid, theirs.n_vbuckets):
        raise IndexMismatch(
            f"the indexes are of buckets {ours.source_uuid} ({ours.n_vbuckets} vbuckets) and {theirs.source_uuid} "
            f"({theirs.n_vbuckets}): only those of one bucket can be compared"
        )
    run = _Run((left, right))
    names = sorted(set(channels) if channels is not None else {*left.channels(), *right.channels()})
    for n_compared, (ours_of, theirs_of) in enumerate(run.read(names)):
        if n_compared % CHANNELS_PER_READ == 0:
            progress(n_compared, len(names))
        run.compare(ours_of, theirs_of)
    return run.result()


class _Run:
    def __init__(self, stores: Sequence[IndexReader]) -> None:
        self._stores = stores
        self._snapshots = [IndexSnapshot.take(store) for store in stores]
        assert len(self._snapshots) == 2, "two are compared"
        self._stable = list(map(min, *(snapshot.stable for snapshot in self._snapshots)))
        self._counts: Counter[str] = Counter()
        self._by_channel: dict[str, Counter[str]] = {}
        self._details: list[Difference] = []

    def read(self, channels: Sequence[str]) -> Iterator[tuple[Retained, Retained]]:
        """Read each channel from both."""
        left, right = (
            read_retained(store, channels, snapshot)
            for store, snapshot in zip(self._stores, self._snapshots, strict=True)
        )
        return zip(left, right, strict=True)

    def compare(self, ours: Retained, theirs: Retained) -> None:
        """Compare what both have of one channel."""
        assert ours.channel == theirs.channel
        left, right = _by_document(ours), _by_document(theirs)
        floor = {vb: max(ours.floor.get(vb, 0), theirs.floor.get(vb, 0)) for vb in {*ours.floor, *theirs.floor}}
        self._counts.update(channels=1, left_entries=len(left), right_entries=len(right))
        for document in left.keys() | right.keys():
            kind = self._classify(left.get(document), right.get(document), floor.get(document[0], 0))
            if kind in ("in_flux", "forgotten"):
                self._counts[kind] += 1
            elif kind:
                self._add(kind, ours.channel, left.get(document), right.get(document))

    def result(self) -> Comparison:
        """The counts of all channels compared so far."""
        by_channel = {channel: dict(counts) for channel, counts in self._by_channel.items()}
        n_by_channel = sum(sum(counts.values()) for counts in by_channel.values())
        assert n_by_channel == sum(self._counts[kind] for kind in ("missing", "extra", "different"))
        return Comparison(**self._counts, differences_by_channel=by_channel, details=tuple(self._details))

    def _classify(self, left: Entry | None, right: Entry | None, floor: int) -> str:
        """Classify one document: "in_flux", "forgotten", "missing", "extra", "different", or "" where both agree."""
        entries = [entry for entry in (left, right) if entry is not None]
        assert entries, "one of them has it"
        assert len({(entry.vb, entry.key) for entry in entries}) == 1, "one document"
        if any(entry.seqno > self._stable[entry.vb] for entry in entries):
            return "in_flux"
        if left == right:
            return ""
        if any(entry.seqno <= floor for entry in entries):
            return "forgotten"
        return "extra" if left is None else "missing" if right is None else "different"

    def _add(self, kind: str, channel: str, left: Entry | None, right: Entry | None) -> None:
        self._counts[kind] += 1
        self._by_channel.setdefault(channel, Counter())[kind] += 1
        if len(self._details) < MAX_DETAILS:
            document = next(document_id(entry.key) for entry in (left, right) if entry is not None)
            self._details.append(Difference(kind, channel, document, _shown(left), _shown(right)))


def _by_document(retained: Retained) -> dict[_DocumentKey, Entry]:
    return {(entry.vb, entry.key): entry for entry in retained.entries}


def _shown(entry: Entry | None) -> tuple[str, int, int] | None:
    return None if entry is None else (entry.rev, entry.seqno, entry.flags)
