"""Verifies an index: rebuilds the channels in memory from a feed of the bucket, and compares."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from channelindex.checking.bucket_state import BucketState, ChannelMembership, DocumentVersion
from channelindex.decode.base import Decoder
from channelindex.errors import SourceUnavailable
from channelindex.feeds.bounded import SILENCE_TIMEOUT_S, BoundedFeed, read_to_end
from channelindex.model import DELETED, ORIGIN, REMOVED, Entry
from channelindex.reading.query import document_id
from channelindex.reading.retained import CHANNELS_PER_READ, read_retained
from channelindex.reading.since_token import Token
from channelindex.reading.snapshot import IndexSnapshot
from channelindex.stores.base import IndexReader

MAX_DETAILS = 100
"""Differences that a report describes; all are counted. A broken index has as many as it has entries."""

STABLE_TIMEOUT_S = 30.0
"""Time for the index to catch up with what the feed sent: a node that starts needs some seconds."""


OnLacking = Callable[[str, DocumentVersion], None]


def _ignore(channel: str, document: DocumentVersion) -> None:
    """Who only verifies does nothing about it."""


@dataclass(frozen=True)
class WrongEntry:
    """One entry that is not as it should be. `kind` is "missing", "extra", "different" or "undecodable".

    The last is of a document that the index lacks whatever channels it is in: `channel` is empty then.
    """

    kind: str
    channel: str
    id: str
    vb: int
    expected: str
    found: str


@dataclass(frozen=True)
class VerifyReport:
    """The counts and differences of one verification; `dataclasses.asdict` of it is JSON.

    `entries` of `channels` in the index were compared with `documents` of the bucket. `missing`: by the bucket, a
    document is in a channel, or left it, and the index lacks it. `extra`: the index has one in a channel in which it is
    not. `different`: not the same revision, seqno, deletion or removal. `undecodable`: documents whose newest version
    cannot be decoded, so that the index lacks it; all of the bucket, not only those of some channels. `in_flux`:
    entries of documents that changed meanwhile. `undecoded`: entries of documents whose newest version says nothing of
    channels or cannot be decoded. `foreign`: documents that say nothing of channels at all. `forgotten`: documents of a
    channel that an index in memory need not hold any more.

    `empty`: channels that were asked for and of which neither the bucket nor the index has anything; are they mistyped?
    `behind`: vbuckets of which the index did not reach what the bucket had. `ahead`: vbuckets of which it has more
    than the bucket has, as after a rollback that nobody handled.
    """

    documents: int = 0
    channels: int = 0
    entries: int = 0
    missing: int = 0
    extra: int = 0
    different: int = 0
    undecodable: int = 0
    in_flux: int = 0
    undecoded: int = 0
    foreign: int = 0
    forgotten: int = 0
    behind: int = 0
    ahead: int = 0
    empty: tuple[str, ...] = ()
    details: tuple[WrongEntry, ...] = ()

    @property
    def ok(self) -> bool:
        """True if the whole index agrees with the bucket."""
        wrong = self.missing or self.extra or self.different or self.undecodable
        return not (wrong or self.behind or self.ahead)


def verify(
    store: IndexReader,
    feed: BoundedFeed,
    decoder: Decoder,
    high_seqnos: Callable[[], Mapping[int, int]],
    channels: Iterable[str] | None = None,
    *,
    stable_timeout_s: float = STABLE_TIMEOUT_S,
    silence_timeout_s: float = SILENCE_TIMEOUT_S,
    progress: Callable[[int, int], None] = lambda done, total: None,  # noqa: ARG005 nobody looks
    on_lacking: OnLacking = _ignore,
) -> VerifyReport:
    """Compare *channels*, or all, of the index with the bucket behind *feed*, which has not been started yet.

    *high_seqnos* asks the bucket for its highest seqnos, by vbucket. Writers and nodes may continue meanwhile: what
    changes is counted as in flux instead of compared. The caller closes *feed*. *progress* is called now and then with
    the number of channels that are compared, and of all; *on_lacking* with a channel and the document of which it
    lacks the newest version.

    Raises:
        SourceUnavailable: the feed sent nothing for *silence_timeout_s*, or the source rolled back meanwhile.
        IndexCorrupt, IndexMissing, StoreUnavailable: see `ChangesReader.changes`.
    """
    bucket = BucketState(decoder, store.meta().n_vbuckets)
    assert stable_timeout_s >= 0
    feed.start(dict.fromkeys(range(len(bucket.high_seqnos)), ORIGIN))
    for events in read_to_end(feed, silence_timeout_s):
        bucket.add(events)
    before = IndexSnapshot.take(store).stable
    highs = dict(high_seqnos())
    snapshot = _caught_up(store, highs, stable_timeout_s)
    comparison = _Verification(bucket, snapshot, before, highs, on_lacking)
    names = set(channels) if channels is not None else {*store.channels(), *comparison.documents_by_channel}
    for n_compared, (channel, entries, floor) in enumerate(read_retained(store, sorted(names), snapshot)):
        if n_compared % CHANNELS_PER_READ == 0:
            progress(n_compared, len(names))
        comparison.compare(channel, entries, floor)
    _check_history(store, snapshot)
    return comparison.report(names_empty=channels is not None)


def _caught_up(store: IndexReader, highs: Mapping[int, int], timeout_s: float) -> IndexSnapshot:
    """The index as soon as it is stable up to *highs*, or as it is after *timeout_s*."""
    deadline = time.monotonic() + timeout_s
    while True:
        counter = store.stable_counter()
        snapshot = IndexSnapshot.take(store)
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not _behind(snapshot, highs):
            return snapshot
        store.wait_stable(counter, left_s)


def _behind(snapshot: IndexSnapshot, highs: Mapping[int, int]) -> set[int]:
    return {vb for vb, high in highs.items() if snapshot.stable[vb] < high}


def _check_history(store: IndexReader, snapshot: IndexSnapshot) -> None:
    """Raise SourceUnavailable if what *snapshot* showed was taken back meanwhile."""
    stable = tuple(snapshot.stable)
    if IndexSnapshot.take(store).resume(Token(0, 0, snapshot.epochs, stable, stable)).seqnos != stable:
        raise SourceUnavailable("the source rolled back while the index was read; verify again")


class _Verification:
    """Compares channel by channel.

    An index entry above what the feed sent is of a document that changed meanwhile; a document above the stable clock
    need not be in the index yet. Neither counts, unless the index is ahead of the bucket.
    """

    def __init__(
        self,
        bucket: BucketState,
        snapshot: IndexSnapshot,
        stable_before: list[int],
        highs: Mapping[int, int],
        on_lacking: OnLacking,
    ) -> None:
        self._bucket = bucket
        self._on_lacking = on_lacking
        self._stable = snapshot.stable
        self._behind = _behind(snapshot, highs)
        self._ahead = {vb for vb, high in highs.items() if stable_before[vb] > high}
        self._counts: Counter[str] = Counter()
        self._details: list[WrongEntry] = []
        self._empty: list[str] = []
        """Channels compared of which neither side has anything."""
        self.documents_by_channel: dict[str, list[DocumentVersion]] = defaultdict(list)
        for document in bucket.documents():
            self._count(document)
            for channel in document.channels():
                self.documents_by_channel[channel].append(document)

    def _count(self, document: DocumentVersion) -> None:
        self._counts["documents"] += 1
        if document.problem:
            self._add("undecodable", "", document, "a document that can be decoded", document.problem)
        elif not document.decoded:
            self._counts["foreign"] += 1

    def compare(self, channel: str, entries: Iterable[Entry], floor: Mapping[int, int]) -> None:
        """Judge all *entries* that the index has of *channel*, and find those that it lacks.

        Up to *floor* it need not have any.
        """
        self._counts["channels"] += 1
        indexed: set[tuple[int, bytes]] = set()
        for entry in entries:
            self._counts["entries"] += 1
            indexed.add((entry.vb, entry.key))
            self._judge(channel, entry)
        if not indexed and channel not in self.documents_by_channel:
            self._empty.append(channel)
        for document in self.documents_by_channel.get(channel, ()):
            if (document.vb, document.key) not in indexed:
                self._judge_absence(channel, document, floor.get(document.vb, 0))

    def report(self, *, names_empty: bool) -> VerifyReport:
        """The result for all channels compared so far."""
        return VerifyReport(
            **self._counts,
            behind=len(self._behind),
            ahead=len(self._ahead),
            empty=tuple(self._empty) if names_empty else (),
            details=tuple(self._details),
        )

    def _judge(self, channel: str, entry: Entry) -> None:
        document = self._bucket.find(entry.vb, entry.key)
        if self._changed_since(entry) or self._not_due(entry.vb, document):
            self._counts["in_flux"] += 1
        elif document is None:
            if not entry.flags & (REMOVED | DELETED):  # else it is a tombstone that the bucket has purged since
                self._add("extra", channel, entry, "no such document", _described(_membership(entry), entry.seqno))
        elif not document.decoded:
            self._counts["undecoded"] += 1
        elif (expected := document.membership(channel)) is None:
            if not entry.flags & REMOVED:
                self._add("extra", channel, entry, "not in the channel", _described(_membership(entry), entry.seqno))
        elif not _agrees(entry, document, expected):
            if entry.seqno < document.seqno:
                self._on_lacking(channel, document)
            self._add(
                "different",
                channel,
                entry,
                _described(expected, document.seqno),
                _described(_membership(entry), entry.seqno),
            )

    def _judge_absence(self, channel: str, document: DocumentVersion, floor: int) -> None:
        expected = document.membership(channel)
        if self._not_due(document.vb, document):
            self._counts["in_flux"] += 1
        elif expected is not None and floor and (document.seqno <= floor or expected.removed):
            self._counts["forgotten"] += 1  # a removal may have been indexed with any older version
        elif expected is not None:
            self._on_lacking(channel, document)
            self._add("missing", channel, document, _described(expected, document.seqno), "no entry")

    def _changed_since(self, entry: Entry) -> bool:
        return entry.seqno > self._bucket.high_seqnos[entry.vb] and entry.vb not in self._ahead

    def _not_due(self, vb: int, document: DocumentVersion | None) -> bool:
        return vb in self._behind if document is None else document.seqno > self._stable[vb]

    def _add(self, kind: str, channel: str, at: Entry | DocumentVersion, expected: str, found: str) -> None:
        self._counts[kind] += 1
        if len(self._details) < MAX_DETAILS:
            self._details.append(WrongEntry(kind, channel, document_id(at.key), at.vb, expected, found))


def _agrees(entry: Entry, document: DocumentVersion, expected: ChannelMembership) -> bool:
    """A removal may have been indexed with an older version of the document than its newest, membership never."""
    assert (entry.vb, entry.key) == (document.vb, document.key), "one document"
    seqno_agrees = entry.seqno <= document.seqno if expected.removed else entry.seqno == document.seqno
    return seqno_agrees and _membership(entry) == expected


def _membership(entry: Entry) -> ChannelMembership:
    return ChannelMembership(entry.rev, bool(entry.flags & DELETED), bool(entry.flags & REMOVED))


def _described(membership: ChannelMembership, seqno: int) -> str:
    what = "removed by" if membership.removed else "in it with"
    return f"{what} revision {membership.rev}{', deleted' if membership.deleted else ''}, seqno {seqno}"
