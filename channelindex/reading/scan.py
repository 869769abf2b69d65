"""Finds each document's newest entry in the bytes of blocks. Pure; the reader's hot loop."""

import struct
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

from channelindex import blocks
from channelindex.blocks import OnCorrupt, refuse
from channelindex.errors import IndexCorrupt
from channelindex.model import REMOVED, Entry
from channelindex.reading.since_token import MAX_SEQNO, Token
from channelindex.reading.snapshot import IndexSnapshot

_HEADER_KIND = bytes([blocks.HEADER])

Found = tuple[int, int, int, bytes]
"""(seqno, flags, channels, stored bytes) of a document's newest entry; a plain tuple, because there may be 100,000 of
them. `channels` is a bit mask: the positions in the request of the channels that have this very entry."""

FoundByVb = defaultdict[int, dict[bytes, Found]]
"""By vbucket and key; only vbuckets of which something was found."""


class Scan:
    """Collects the entries in a window of the index: above *since* (seqnos by vbucket), and visible in *snapshot*.

    *begin* is the token of the reader before it was lowered to *since*; without it, nothing was lowered.
    """

    def __init__(self, snapshot: IndexSnapshot, since: Sequence[int], begin: Token | None = None) -> None:
        assert len(since) == len(snapshot.stable), "a seqno for each vbucket"
        self.snapshot = snapshot
        self.since = since
        self._begin = begin
        self._found_by_vb: FoundByVb = defaultdict(dict)

    def count(self) -> int:
        """Number of documents found."""
        return sum(map(len, self._found_by_vb.values()))

    def vbuckets(self) -> list[int]:
        """The vbuckets in which documents were found, in no order."""
        return [vb for vb, documents in self._found_by_vb.items() if documents]

    def count_in(self, vb: int) -> int:
        """Number of documents found in a vbucket."""
        assert 0 <= vb < len(self.since)
        return len(self._found_by_vb.get(vb, ()))

    def heard_upto(self, vb: int) -> int:
        """`IndexSnapshot.heard_upto` of the reader."""
        if self._begin is None:
            return self.since[vb] or MAX_SEQNO
        return self.snapshot.heard_upto(self._begin, vb)

    def forget(self, vb: int) -> None:
        """Forget what was found in a vbucket."""
        self._found_by_vb.pop(vb, None)

    def documents(self, vb: int) -> list[Found]:
        """The documents found in a vbucket, by seqno."""
        return sorted(self._found_by_vb.get(vb, {}).values())

    def keep(self, vb: int, is_kept: Callable[[bytes, Found], bool]) -> None:
        """Forget the documents found in a vbucket, given as key and entry, that are not to be kept."""
        if found := self._found_by_vb.get(vb):
            self._found_by_vb[vb] = {key: entry for key, entry in found.items() if is_kept(key, entry)}

    def entries(self) -> Iterator[Entry]:
        """The newest entry of every document found, by vbucket and seqno."""
        for vb in sorted(self._found_by_vb):
            yield from blocks.iter_entries(b"".join([found[3] for found in self.documents(vb)]))

    def add_found(self, found_by_vb: FoundByVb, channel: int) -> None:
        """Add what `ChannelScans` found in the channel at position *channel*, in this window."""
        for vb, documents in found_by_vb.items():
            into = self._found_by_vb[vb]
            for key, (seqno, flags, _, raw) in documents.items():
                known, found = into.get(key), (seqno, flags, 1 << channel, raw)
                if known is None or known[0] < seqno:
                    into[key] = found
                elif known[0] == seqno:
                    into[key] = merged(known, found)

    def add_block(self, block: bytes, channel: int, on_corrupt: OnCorrupt = refuse) -> bool:
        """Add a block of the channel at position *channel*; return true if blocks before it may hold entries, too.

        Where *on_corrupt* returns, the intact part of the block is added. Without a header, blocks before it may hold
        anything.

        Raises:
            IndexCorrupt: if *on_corrupt* does; part of the block may have been taken.
        """
        assert channel >= 0
        if not block.startswith(_HEADER_KIND):
            on_corrupt(IndexCorrupt("it does not begin with a header"))
        return self._add_frames(block, channel, on_corrupt)

    def add_tail(self, tail: bytes, channel: int, on_corrupt: OnCorrupt = refuse) -> None:
        """Take the end of a block of the channel at position *channel*; see `add_block`."""
        self._add_frames(tail, channel, on_corrupt)

    def _add_frames(self, frames: bytes, channel: int, on_corrupt: OnCorrupt) -> bool:
        """Take the entries in *frames*; whether there is no header among them, or one that reaches into the window."""
        reaches_back = True
        for kind, epoch, body in blocks.iter_frames(frames, on_corrupt):
            try:
                if kind == blocks.ENTRIES:
                    self._add_entries(epoch, body, 1 << channel)
                else:
                    reaches_back = self._reaches_back(epoch, body)
            except (struct.error, IndexError):
                on_corrupt(IndexCorrupt("an entry is cut off or of a vbucket that the index does not have"))
            except IndexCorrupt as error:
                on_corrupt(error)
        return reaches_back

    def _reaches_back(self, epoch: int, pairs: bytes) -> bool:
        limits = self.clock_limits(epoch)
        return not self.covered({vb: min(seqno, limits[vb]) for vb, seqno in blocks.unpack_pairs(pairs).items()})

    def clock_limits(self, epoch: int) -> Sequence[int]:
        """The seqno of each vbucket that a clock of *epoch* is lowered to."""
        return self.snapshot.limits(epoch).clock

    def clock_limit(self, epoch: int, vb: int) -> int:
        """`clock_limits` of one vbucket, as `blocks.fold_clock` wants it.

        Raises:
            IndexCorrupt: the index has no such vbucket.
        """
        try:
            return self.clock_limits(epoch)[vb]
        except IndexError as error:
            raise IndexCorrupt(f"vbucket {vb} in a clock, of {len(self.since)} that the index has") from error

    def covered(self, clock: Mapping[int, int]) -> bool:
        """True if *clock*, lowered to what is live, lies below the window."""
        return all(seqno <= self.since[vb] for vb, seqno in clock.items())

    def _add_entries(self, epoch: int, body: bytes, channel_bit: int) -> None:
        limits = self.snapshot.limits(epoch).visible
        since, found_by_vb, unpack_head = self.since, self._found_by_vb, blocks.unpack_entry_head
        offset, end = 0, len(body)
        while offset < end:
            start = offset
            vb, seqno, flags, key_size, rev_size = unpack_head(body, start)
            key_start = start + blocks.ENTRY_HEAD_BYTES
            key_end = key_start + key_size
            offset = key_end + (blocks.PACKED_REV_BYTES if rev_size == blocks.PACKED else rev_size)
            if not since[vb] < seqno <= limits[vb]:
                continue
            found = found_by_vb[vb]
            key = body[key_start:key_end]
            known = found.get(key)
            if known is None or known[0] < seqno:
                found[key] = (seqno, flags, channel_bit, body[start:offset])
            elif known[0] == seqno:
                found[key] = merged(known, (seqno, flags, channel_bit, body[start:offset]))
        if offset > end:
            raise IndexCorrupt(f"an entry ends {offset - end} bytes after its frame")


class ChannelScans(Scan):
    """Scans of several channels in one walk, which keeps apart what each of them has: `by_channel`, by position."""

    def __init__(self, snapshot: IndexSnapshot, since: Sequence[int], n_channels: int) -> None:
        assert n_channels >= 0, "none where nothing has changed"
        super().__init__(snapshot, since)
        self.by_channel: list[FoundByVb] = [defaultdict(dict) for _ in range(n_channels)]

    def _add_entries(self, epoch: int, body: bytes, channel_bit: int) -> None:
        self._found_by_vb = self.by_channel[channel_bit.bit_length() - 1]
        super()._add_entries(epoch, body, 1)


def merged(known: Found, other: Found) -> Found:
    """Return one of two entries of a document at a seqno: to be in one channel counts more than to have left another.

    Of two removals the one by the later revision stays: both revisions are older than the document's present one.
    """
    assert known[0] == other[0], "one document, one seqno"
    if (known[1] ^ other[1]) & REMOVED:
        return other if known[1] & REMOVED else known
    seqno, flags, _, raw = max(known, other, key=_revision_order) if known[1] & REMOVED else known
    return seqno, flags, known[2] | other[2], raw


def _revision_order(found: Found) -> tuple[int, str, str]:
    generation, _, digest = next(blocks.iter_entries(found[3])).rev.partition("-")
    return len(generation), generation, digest
