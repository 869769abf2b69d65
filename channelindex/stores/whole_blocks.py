"""Makes blocks that readers and writers take of what is left of a group's, of which some are lost or damaged."""

from collections.abc import Iterator, Sequence

from channelindex.blocks import ENTRIES, HEADER, Frame, fold_clock, iter_frames, pack_frame, pack_pairs, split_header
from channelindex.errors import IndexCorrupt


def whole_blocks(blocks: Sequence[bytes | None], epoch: int) -> list[bytes]:
    """*blocks*, which follow each other, without their damaged frames; None is one that is lost.

    Where there is no header, there is one that sums up the blocks before it, of *epoch* or the newest that is found.
    """
    newest = max(epoch, newest_epoch(blocks))
    before: dict[int, int] = {}
    whole: list[bytes] = []
    for old in blocks:
        header, _ = split_header(old or b"")
        entries = b"".join(pack_frame(*frame) for frame in _frames(old) if frame[0] == ENTRIES)
        whole.append((header or pack_frame(HEADER, newest, pack_pairs(before))) + entries)
        for vb, seqno in fold_clock(whole[-1]).items():
            before[vb] = max(seqno, before.get(vb, 0))
    assert len(whole) == len(blocks), "each keeps its place"
    return whole


def newest_epoch(blocks: Sequence[bytes | None]) -> int:
    """The highest epoch in the frames of *blocks* that are whole; 0 where there is none."""
    return max((epoch for block in blocks for _, epoch, _ in _frames(block)), default=0)


def _frames(block: bytes | None) -> Iterator[Frame]:
    return iter_frames(block or b"", _ignore)


def _ignore(error: IndexCorrupt) -> None:
    """Go on behind the damage."""
