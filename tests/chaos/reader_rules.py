"""What must hold of what readers were told, and of the stable clock. Pure.

A rollback of the bucket is the one thing that takes anything back, and each may do so once: the index follows it by
one new epoch, at a time that nobody outside knows, if it has to at all. So the rules count: of one vbucket, no reader
is sent back and no clock goes back more often than rollbacks had begun by then. How far back is not judged: a feed
resumes at the end of the last snapshot that was complete, which may lie below what the bucket kept, and a reader begins
at 0 again. Who reads over HTTP is told neither vbucket nor seqno and may be told twice, so only what he believes at
the end is judged. A store that loses its newest writes is recorded as two rollbacks of all vbuckets, and as one more of
each that the bucket had just before or has meanwhile (`World.note_loss`): it may lose that this was followed. One that
is handed over and may make the index go back a little is recorded as a return (`World.note_return`): it sends readers
back too, but far less than to 0.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from tests.chaos.finding import Finding
from tests.chaos.record import NOWHERE, Reader, Record, Rollback, StableSample, Told
from tests.support.history import Membership, expected_channels

FOLLOWED_S = 360.0
"""So long after a rollback has begun the index has followed it, and readers have what they had read before: no fault of
a run lasts a third of it."""
RETURNS_S = 30.0
"""A return goes back a second or two, and surely not so far."""
SURELY_S = 20.0
"""So long after the index seemed to have followed a rollback it surely has: the bucket may write so fast that its
seqnos are again where they were, before any worker has asked for its streams anew."""


class Begun:
    """When rollbacks began, by vbucket."""

    def __init__(self, rollbacks: Iterable[Rollback], samples: Sequence[StableSample] = ()) -> None:
        self._floors_by_vb: defaultdict[int, list[tuple[float, int]]] = defaultdict(list)
        self._times_by_vb: defaultdict[int, list[float]] = defaultdict(list)
        self._spans_by_vb: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
        self._lost_by_vb: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
        for rollback in sorted(rollbacks):
            for vb in rollback.vbs:
                self._times_by_vb[vb].append(rollback.begun)
                floor = _floor(samples, vb, rollback.begun) if rollback.returns else -1
                self._floors_by_vb[vb].append((rollback.begun, floor))
                over = min(rollback.followed + SURELY_S, rollback.begun + FOLLOWED_S)
                self._spans_by_vb[vb].append((rollback.begun, over))
                if rollback.again:
                    self._lost_by_vb[vb].append((rollback.begun, over))

    def count(self, vb: int, at: float) -> int:
        """How many there were of *vb* by then."""
        return bisect_right(self._times_by_vb[vb], at)

    def sends_back(self, told: Told, used: set[int]) -> int | None:
        """The number of one, not in *used*, that may have sent a reader back to before *told*; None for none."""
        begun = enumerate(self._floors_by_vb[told.vb])
        found = [(floor, n) for n, (at, floor) in begun if n not in used and at <= told.at and floor < told.seqno]
        return max(found)[1] if found else None

    def lately(self, vb: int, at: float) -> bool:
        """Whether the index may be about to follow one of *vb*."""
        return any(begun <= at <= over for begun, over in self._spans_by_vb[vb])

    def lost(self, vb: int, at: float) -> bool:
        """Whether the store may have lost that the index followed one of *vb*."""
        return any(begun <= at <= over for begun, over in self._lost_by_vb[vb])


def _floor(samples: Sequence[StableSample], vb: int, begun: float) -> int:
    """A seqno that is surely below where a vbucket returns to at *begun*: half of what was stable a while before."""
    first = max(0, bisect_right(samples, begun - RETURNS_S, key=lambda sample: sample.at) - 1)
    last = bisect_right(samples, begun, key=lambda sample: sample.at)
    seen = [sample.stable[vb] for sample in samples[first:last]]
    return min(seen, default=0) // 2 if seen and samples[first].at <= begun - RETURNS_S else -1


def judge_readers(record: Record) -> Iterator[Finding]:
    """Everything that is wrong with what readers were told.

    At the end they must have read all that is stable, and documents that lost the only revision by which they were ever
    in a channel must have been healed: no entry of the index tells of them.
    """
    begun = Begun(record.rollbacks, record.samples)
    expected = expected_channels(record.written)
    told_by_reader: defaultdict[str, list[Told]] = defaultdict(list)
    for told in record.told:
        told_by_reader[told.reader].append(told)
    channels = dict(record.readers) | {told.reader: told.channel for told in record.told}
    for name, channel in channels.items():
        yield from _missed(Reader(name, channel), told_by_reader[name], expected)
        placed = [told for told in told_by_reader[name] if told.vb != NOWHERE and not told.withdrawn]
        yield from _repeated(placed, begun)
        yield from _too_early(placed, begun)


def _missed(reader: Reader, tellings: Iterable[Told], expected: Membership) -> Iterator[Finding]:
    """Documents of which a reader was last told something else than what is so; of what is withdrawn, nothing is."""
    last = {told.doc: told for told in tellings}
    believed = {doc: (told.rev, told.removed, told.deleted) for doc, told in last.items() if not told.withdrawn}
    true = {doc: tuple(what) for doc, *what in expected.get(reader.channel, ())}
    for doc in sorted(believed.keys() | true.keys()):
        if believed.get(doc) != true.get(doc):
            yield Finding("missed", f"{reader.name}: {doc} is {true.get(doc)}, was last told {believed.get(doc)}")


def _repeated(tellings: Iterable[Told], begun: Begun) -> Iterator[Finding]:
    """Tellings that do not go on behind the one before of their vbucket.

    Each answer holds a window of a vbucket, ascending, and the next one begins where it ended. A reader who had seen
    what a rollback took back begins this vbucket at 0 again. Where the store has lost that the index followed a
    rollback, a seqno is told of what was taken back and of what came instead, until it is followed once more.
    """
    last_seqno: dict[int, int] = {}
    used: defaultdict[int, set[int]] = defaultdict(set)
    told_since: defaultdict[int, set[tuple[str, int]]] = defaultdict(set)
    for told in tellings:
        vb, this = told.vb, (told.doc, told.seqno)
        is_of_two_branches = told.seqno == last_seqno.get(vb) and this not in told_since[vb] and begun.lost(vb, told.at)
        if told.seqno <= last_seqno.get(vb, 0) and not is_of_two_branches:
            reason = begun.sends_back(told, used[vb])
            if reason is not None:
                used[vb].add(reason)
                told_since[vb].clear()
            elif this in told_since[vb]:
                yield Finding("duplicate", f"told twice: {told}")
            else:
                yield Finding("went back", f"{told}, when it was at {last_seqno[vb]}")
        told_since[vb].add(this)
        last_seqno[vb] = told.seqno


def _too_early(tellings: Iterable[Told], begun: Begun) -> Iterator[Finding]:
    """Tellings beyond the stable clock. It was looked at afterwards: by then it moved on, or was rolled back."""
    for told in tellings:
        if 0 <= told.stable < told.seqno and not begun.lately(told.vb, told.at):
            yield Finding("before stable", f"{told}")


def judge_stable_clock(samples: Iterable[StableSample], rollbacks: Iterable[Rollback]) -> Iterator[Finding]:
    """Each time that the stable clock moved back without a rollback."""
    begun = Begun(rollbacks)
    times_back: defaultdict[int, int] = defaultdict(int)
    before: tuple[int, ...] = ()
    for at, stable in samples:
        for vb, (old, new) in enumerate(zip(before, stable, strict=False)):  # there is none before the first
            if new < old:
                times_back[vb] += 1
                if times_back[vb] > begun.count(vb, at):
                    yield Finding("stable moved back", f"vbucket {vb} from {old} to {new} at {at:.3f}")
        before = stable
