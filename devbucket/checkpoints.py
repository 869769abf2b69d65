"""The source checkpoints of a vbucket: where what is in memory is cut into snapshots. No I/O."""

from bisect import bisect_right


class SourceCheckpoints:
    """The first seqnos of the checkpoints, rising. The last checkpoint is open: what comes is in it."""

    def __init__(self) -> None:
        self._starts = [1]

    def close(self, high_seqno: int) -> None:
        """Close the open one, unless nothing is in it."""
        if self._starts[-1] <= high_seqno:
            self._starts.append(high_seqno + 1)

    def begin_at(self, seqno: int) -> None:
        """Have one checkpoint only, which begins at *seqno*."""
        self._starts = [seqno]

    def holding(self, seqno: int, high_seqno: int) -> tuple[int, int]:
        """The first and the last seqno of the checkpoint that holds *seqno*."""
        number = bisect_right(self._starts, seqno)
        following = self._starts[number : number + 1]
        return self._starts[max(0, number - 1)], min([high_seqno, *(start - 1 for start in following)])

    def cut_behind(self, seqno: int) -> None:
        """Forget what begins after *seqno*: it was lost."""
        self._starts = [start for start in self._starts if start <= seqno] or [seqno + 1]

    def merge_up_to(self, seqno: int) -> None:
        """Let those up to *seqno* be one with the next: they lack versions of keys that came again."""
        first, *others = self._starts
        self._starts = [first, *(start for start in others if start > seqno)]
