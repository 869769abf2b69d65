"""Chooses which entries of a channel stay. Pure; the compactor's hot loop.

The rules are the table in docs/design/015-compaction.md.
"""

from collections import defaultdict
from typing import NamedTuple

from channelindex import blocks
from channelindex.compaction.judge import Judge
from channelindex.errors import IndexCorrupt
from channelindex.model import DELETED, REMOVED

_GONE = DELETED | REMOVED

KeptEntry = tuple[int, int, int, bytes]
"""(seqno, vb, epoch, stored bytes). A plain tuple, and in the order in which a block has them."""


class Counts(NamedTuple):
    """Counts of entries: read, and those that left, by reason."""

    read: int = 0
    superseded: int = 0
    dead: int = 0
    removals: int = 0
    repeated: int = 0

    @property
    def left(self) -> int:
        """Number of entries that leave."""
        return self.superseded + self.dead + self.removals + self.repeated


class Selected(NamedTuple):
    """Holds the entries that stay, sorted; and by vbucket the highest seqno of a removal that left for its age.

    Of what stays, `young_superseded` and `young_dead` entries may leave when they are older; so may others where
    `is_ripening`. `long_dead` entries of the inputs were dead for long, whatever they left for; so are
    `long_dead_outside`, which stay where they are.
    """

    kept: list[KeptEntry]
    floor: dict[int, int]
    counts: Counts
    young_superseded: int
    young_dead: int
    long_dead: int = 0
    long_dead_outside: int = 0
    is_ripening: bool = False


class _DocumentEntries:
    """The entries of one document: those of the inputs that are not known to be superseded, and what is known else.

    `later` are those of epochs after the view: the source may have sent them once more because what supersedes them
    by the view has died since.
    """

    __slots__ = ("entries", "later", "newest_live", "newest_settled", "oldest_outside")

    def __init__(self) -> None:
        self.entries: set[tuple[int, int, bytes]] = set()
        self.later: set[tuple[int, int, bytes]] | None = None
        self.newest_settled = -1
        self.newest_live = -1
        self.oldest_outside: int | None = None


class Selection:
    """Takes in the frames of a channel's blocks, in any order; then `result` says what stays.

    *judge* knows the epochs and ages. Only with *is_whole*, that is if all blocks of the channel are taken in, may
    removals leave for their age: an older entry that is elsewhere would be the newest again.
    """

    def __init__(self, judge: Judge, *, is_whole: bool) -> None:
        self._judge = judge
        self._is_whole = is_whole
        self._by_vb: defaultdict[int, dict[bytes, _DocumentEntries]] = defaultdict(dict)
        self._n_read = self._n_dead = self._n_repeated = self._n_superseded = 0
        self._n_long_dead = self._n_long_dead_outside = 0

    def add(self, epoch: int, body: bytes, *, is_input: bool) -> None:
        """Take in a frame of *epoch*. Without *is_input* its entries stay where they are, and may supersede others.

        Raises:
            IndexCorrupt: an entry is cut off, or of a vbucket that the index does not have.
        """
        settled, live, lately_live, judged = self._judge.limits(epoch)
        offset, end = 0, len(body)
        while offset < end:
            start = offset
            if start + blocks.ENTRY_HEAD_BYTES > end:
                raise IndexCorrupt(f"entry at byte {start} of {end} is cut off")
            vb, seqno, _, key_size, rev_size = blocks.unpack_entry_head(body, start)
            key_end = start + blocks.ENTRY_HEAD_BYTES + key_size
            offset = key_end + (blocks.PACKED_REV_BYTES if rev_size == blocks.PACKED else rev_size)
            if vb >= len(live):
                raise IndexCorrupt(f"entry at byte {start} is of vbucket {vb}, of {len(live)} that the index has")
            documents = self._by_vb[vb]
            key = body[start + blocks.ENTRY_HEAD_BYTES : key_end]
            document = documents.get(key)
            if document is None:
                document = documents[key] = _DocumentEntries()
            if seqno <= live[vb]:
                document.newest_live = max(document.newest_live, seqno)
            if document.newest_settled < seqno <= settled[vb]:
                self._settle(document, seqno)
            is_dead = seqno > lately_live[vb]
            if not is_input:
                self._n_long_dead_outside += is_dead
                outside = document.oldest_outside
                document.oldest_outside = seqno if outside is None else min(outside, seqno)
                continue
            self._n_read += 1
            self._n_long_dead += is_dead
            if seqno > judged[vb]:
                self._keep_later(document, (seqno, epoch, body[start:offset]))
            elif seqno < document.newest_settled:
                self._n_superseded += 1
            elif is_dead:
                self._n_dead += 1
            else:
                size = len(document.entries)
                document.entries.add((seqno, epoch, body[start:offset]))
                self._n_repeated += len(document.entries) == size
        if offset > end:
            raise IndexCorrupt(f"an entry ends {offset - end} bytes after its frame")

    def _keep_later(self, document: _DocumentEntries, entry: tuple[int, int, bytes]) -> None:
        """Keep *entry*, of which nothing is known."""
        document.later = document.later or set()
        self._n_repeated += entry in document.later
        document.later.add(entry)

    def _settle(self, document: _DocumentEntries, seqno: int) -> None:
        """*seqno* is the newest settled one of *document*: what is older leaves."""
        assert seqno > document.newest_settled, "the newest settled one rises"
        document.newest_settled = seqno
        older = {entry for entry in document.entries if entry[0] < seqno}
        self._n_superseded += len(older)
        document.entries -= older

    @property
    def n_held(self) -> int:
        """Number of entries that are held in memory."""
        return self._n_read - self._n_superseded - self._n_dead - self._n_repeated

    def result(self) -> Selected:
        """The entries that stay of all that was taken in."""
        kept: list[KeptEntry] = []
        floor: dict[int, int] = {}
        n_removals = young_superseded = young_dead = 0
        for vb, documents in self._by_vb.items():
            removable = self._judge.ages.removable[vb]
            for document in documents.values():
                if self._may_forget(document, removable):
                    floor[vb] = max(floor.get(vb, 0), document.newest_settled)
                    n_removals += len(document.entries)
                    continue
                entries = document.entries if document.later is None else document.entries | document.later
                for seqno, epoch, raw in entries:
                    kept.append((seqno, vb, epoch, raw))
                    young_superseded += seqno < document.newest_live
                    young_dead += seqno > self._judge.limits(epoch).live[vb]
        kept.sort()
        assert n_removals == 0 or self._is_whole, "removals leave for their age with all blocks at hand alone"
        counts = Counts(self._n_read, self._n_superseded, self._n_dead, n_removals, self._n_repeated)
        assert counts.read - counts.left == len(kept), "an entry that was read stays or is counted"
        dead = self._n_long_dead, self._n_long_dead_outside
        has_removals = self._judge.ages.forgets_removals and any(_flags(raw) & _GONE for _, _, _, raw in kept)
        is_ripening = young_superseded + young_dead > 0 or has_removals
        return Selected(kept, floor, counts, young_superseded, young_dead, *dead, is_ripening)

    def _may_forget(self, document: _DocumentEntries, removable: int) -> bool:
        """True if all that is left of *document* is a removal that is old enough, and nothing of it is elsewhere."""
        is_all = self._is_whole and document.oldest_outside is None and document.later is None
        if not (is_all and document.entries):
            return False
        return all(
            seqno == document.newest_settled <= removable and _flags(raw) & _GONE for seqno, _, raw in document.entries
        )


def _flags(raw: bytes) -> int:
    _, _, flags, _, _ = blocks.unpack_entry_head(raw, 0)
    return int(flags)
