"""The timeline of a partition: at which time which checkpoints were stable. Pure; no I/O.

An entry of the index has no time. A partition's *moments* say how old its seqnos are, and where an index goes back to
whose store has lost the newest of what it acknowledged. A moment is noted seconds after the one before it, and then
thinned out: the older they are, the further they lie apart.

A moment has the epoch under which it was noted, and is judged by it like everything else: what a later start took back
was not stable, whatever the moment says.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from channelindex.model import Checkpoint

KEPT_MS = 100 * 86_400_000
"""Age up to which the timeline reaches back: one moment is kept that is at least as old."""

GAP_SHARE = 3
"""Two moments lie apart by at least this part of their age: about 45 of them from a second to KEPT_MS."""


class Moment(NamedTuple):
    """At `time_ms` (Unix ms, by the clock of the node that noted it) all up to `checkpoints` was stable.

    `mark` is the number of the mark that the owner of `epoch` had set in every slot of the store before; 0 where the
    store has none, because it loses record and blocks together.
    """

    time_ms: int
    epoch: int
    mark: int
    checkpoints: tuple[Checkpoint, ...]


def with_moment(moments: Sequence[Moment], new: Moment) -> list[Moment]:
    """*moments* with *new* behind them, at `next_time` at the earliest, and without those that it supersedes."""
    times_ms = [moment.time_ms for moment in moments]
    assert _is_ascending(times_ms)
    new = new._replace(time_ms=next_time(times_ms, new.time_ms))
    gone = set(superseded(times_ms, new.time_ms))
    return [*(moment for position, moment in enumerate(moments) if position not in gone), new]


def newest_before(moments: Sequence[Moment], time_ms: int) -> Moment | None:
    """The newest of *moments*, which are ascending, that is not after *time_ms*; None where none is."""
    assert _is_ascending([moment.time_ms for moment in moments])
    n_before = bisect_right(moments, time_ms, key=lambda moment: moment.time_ms)
    return moments[n_before - 1] if n_before else None


def surviving(moments: Sequence[Moment], marks_by_slot: Sequence[Mapping[int, int]]) -> Sequence[Moment]:
    """*moments*, ascending, up to the newest whose mark every slot still has; none where there is no such.

    *marks_by_slot* are the newest numbers that each slot has, by epoch. What was stable at that moment is all there,
    and so is what was stable before it.
    """
    assert _is_ascending([moment.time_ms for moment in moments])
    for n_left in range(len(moments), 0, -1):
        _, epoch, mark, _ = moments[n_left - 1]
        if mark and all(marks.get(epoch, 0) >= mark for marks in marks_by_slot):
            return moments[:n_left]
    return ()


def next_time(times_ms: Sequence[int], now_ms: int) -> int:
    """The time of the moment that follows those at *times_ms*, ascending: after them, whatever a node's clock says.

    Behind a clock that was ahead, moments are a millisecond apart until the others have come up to it: they are thinned
    out by that, so as many are left of them as of others, and an index whose store lost something goes back no further.
    """
    return max(now_ms, times_ms[-1] + 1) if times_ms else now_ms


def superseded(times_ms: Sequence[int], now_ms: int) -> list[int]:
    """The positions in *times_ms*, ascending, of the moments that go when one at *now_ms* follows them.

    Of two that lie closer than the GAP_SHARE-th part of their age, the newer goes. The oldest goes when the one after
    it is older than KEPT_MS.
    """
    assert all(time_ms < now_ms for time_ms in times_ms), "see `next_time`"
    assert _is_ascending(times_ms)
    gone: list[int] = []
    kept: list[int] = []
    for position, time_ms in enumerate(times_ms):
        is_close = bool(kept) and (time_ms - times_ms[kept[-1]]) * GAP_SHARE < now_ms - time_ms
        if is_close:
            gone.append(position)
        else:
            kept.append(position)
    while len(kept) > 1 and now_ms - times_ms[kept[1]] > KEPT_MS:
        gone.append(kept.pop(0))
    return sorted(gone)


def _is_ascending(times_ms: Sequence[int]) -> bool:
    return all(one <= after for one, after in pairwise(times_ms))
