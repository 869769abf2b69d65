"""What must hold of the entries in the store, given what was written. Pure.

The index must be at rest, and its stable clock have reached what the bucket has: until then the newest changes are
rightly not visible, and what a rollback took back may still be.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from zlib import crc32

from tests.chaos.finding import Finding
from tests.chaos.raw_index import ChannelClock, Entry, RawIndex
from tests.chaos.record import Record
from tests.support.history import Line, expected_channels

DELETED = 1
REMOVED = 2

States = dict[tuple[str, str, str], set[int]]
"""(channel, document, revision) -> the flags that an entry of them may have: one, unless a resync moved the document
without a new revision."""


def judge_index(record: Record, index: RawIndex) -> Iterator[Finding]:
    """Everything that is wrong with what is stored."""
    visible = [entry for entry in index.entries if index.is_visible(entry)]
    yield from (Finding("damaged", what) for what in index.damage)
    yield from _lost(record.written, visible)
    yield from _untrue(record, visible, index.n_vbuckets)
    yield from _duplicates(visible)
    yield from _disorder(index.entries)
    yield from _low_clocks(index)


def _lost(written: list[Line], visible: Sequence[Entry]) -> Iterator[Finding]:
    """Documents whose newest visible entry in a channel is not by the revision that last put them in it or out of it.

    Only the newest state is owed: the bucket forgets older revisions, and may do so before it was asked for them. An
    entry by the right revision with the wrong flags is a matter of `_untrue`.
    """
    newest: dict[tuple[str, str], Entry] = {}
    for entry in visible:
        key = entry.channel, entry.doc
        if key not in newest or newest[key].seqno < entry.seqno:
            newest[key] = entry
    states_of = _all_states(written)
    for channel, states in sorted(expected_channels(written).items()):
        for doc, rev, removed, deleted in sorted(states):
            found = newest.get((channel, doc))
            flags = (REMOVED if removed else 0) | (DELETED if deleted else 0)
            if found is None:
                yield Finding("lost", f"{doc} {rev} in {channel}: there is no visible entry of the document")
            elif found.rev != rev:
                yield Finding("lost", f"{doc} {rev} in {channel}: the newest visible entry is {found}")
            elif found.flags != flags and found.flags in states_of[channel, doc, rev]:  # before a resync it was so
                yield Finding("lost", f"{doc} {rev} in {channel} after a resync: the newest visible entry is {found}")


def _untrue(record: Record, visible: Sequence[Entry], n_vbuckets: int) -> Iterator[Finding]:
    """Visible entries that no written revision accounts for, and such that say of one what it was not.

    Each revision has one state in each channel, until a resync: what it was taken out of follows from the revision
    before it. That a revision was taken back is no excuse: what is visible is of the history that is left.
    """
    states = _all_states(record.written)
    taken_back = {(line["id"], line["rev"]) for line in record.taken_back}
    for entry in visible:
        flags = states.get((entry.channel, entry.doc, entry.rev))
        if not flags:
            was = "taken back" if (entry.doc, entry.rev) in taken_back else "never written, or not in this channel"
            yield Finding("phantom", f"{entry}: that was {was}")
        elif entry.flags not in flags:
            yield Finding("wrong flag", f"{entry}: its flags must be {' or '.join(map(str, sorted(flags)))}")
        elif entry.vb != (vb := _vbucket_of(entry.doc, n_vbuckets)):
            yield Finding("phantom", f"{entry}: the document is of vbucket {vb}")


def _all_states(written: Iterable[Line]) -> States:
    """As `expected_channels`, but of every revision and not of the newest alone."""
    states: States = defaultdict(set)
    current: dict[str, set[str]] = {}
    for line in written:
        doc, rev, deletion = line["id"], line["rev"], DELETED if line.get("deleted") else 0
        assigned = set() if deletion else set(line["channels"])
        for channel in current.get(doc, set()) - assigned:
            states[channel, doc, rev].add(REMOVED | deletion)
        for channel in assigned:
            states[channel, doc, rev].add(0)
        states["*", doc, rev].add(deletion)
        current[doc] = assigned
    return states


def _vbucket_of(doc: str, n_vbuckets: int) -> int:
    """As every Couchbase client has it: bits 16 to 30 of the key's CRC-32."""
    return (crc32(doc.encode()) >> 16 & 0x7FFF) % n_vbuckets


def _duplicates(visible: Sequence[Entry]) -> Iterator[Finding]:
    """Visible entries of one channel and seqno that differ. Equal ones are allowed: a batch may be written twice."""
    known: dict[tuple[str, int, int], Entry] = {}
    for entry in visible:
        first = known.setdefault((entry.channel, entry.vb, entry.seqno), entry)
        if (first.doc, first.rev, first.flags) != (entry.doc, entry.rev, entry.flags):
            yield Finding("duplicate", f"{entry} besides {first}")


def _disorder(entries: Sequence[Entry]) -> Iterator[Finding]:
    """Entries that were stored behind a later one of their vbucket.

    Only within an epoch and a group, which is one feed worker's life: each streams from where it began. And only at the
    first time: a writer that died is followed by one that repeats, from the oldest frame not committed on, all that it
    may have written; so does a request that arrives late. Who repairs writes whatever is missing behind all else.
    """
    seen_by_stream: defaultdict[tuple[str, str, int, int], set[int]] = defaultdict(set)
    newest: dict[tuple[str, str, int, int], Entry] = {}
    for entry in entries:
        stream = entry.channel, entry.group, entry.epoch, entry.vb
        if entry.seqno in seen_by_stream[stream] or entry.group.startswith("repair-"):
            continue
        seen_by_stream[stream].add(entry.seqno)
        if stream in newest and entry.seqno < newest[stream].seqno:
            yield Finding("order", f"{entry} is stored behind {newest[stream]}")
        else:
            newest[stream] = entry


_Place = tuple[int, bool]
"""A block, and whether it is the part of the active one that no clock frame counts."""


def _place(entry: Entry, split: ChannelClock | None) -> _Place:
    if split is None or split.position is None:
        return entry.block, False
    return entry.block, entry.block == split.before and entry.position >= split.position


def _low_clocks(index: RawIndex) -> Iterator[Finding]:
    """Headers and clock frames that say less than a live entry before them: a reader who believes them stops too early.

    An entry that is there a second time behind the header is found there; a dead one need not be found. A clock may say
    too much: it also counts what died.
    """
    splits = {(clock.channel, clock.group): clock for clock in index.clocks if clock.position is not None}
    last_place: dict[tuple[str, str, int, int, str, str, int], _Place] = {}
    for entry in index.entries:
        if index.is_live(entry):
            last_place[entry.channel, entry.group, *entry[5:]] = _place(entry, splits.get((entry.channel, entry.group)))
    heights: defaultdict[tuple[str, str], dict[_Place, dict[int, int]]] = defaultdict(lambda: defaultdict(dict))
    for (channel, group, vb, seqno, *_), place in last_place.items():
        height = heights[channel, group][place]
        height[vb] = max(seqno, height.get(vb, 0))
    for clock in index.clocks:
        said = dict(clock.pairs)
        for place, height in heights[clock.channel, clock.group].items():
            for vb, seqno in height.items():
                if place < (clock.before, clock.position is not None) and said.get(vb, 0) < seqno:
                    missing = f"vbucket {vb} at {said.get(vb, 0)}, and block {place[0]} has {seqno}"
                    yield Finding(
                        "clock", f"{clock.channel}, group {clock.group}, before block {clock.before}: {missing}"
                    )
