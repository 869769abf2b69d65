"""Marks in the slots of a Redis Cluster: how far back a slot goes that has lost the newest of what it acknowledged.

Each master of a cluster loses by itself, and always a suffix: replication and the append-only file are prefixes of what
it took. An owner that has set its mark number n in every slot, while the servers were the same, knows: a slot that has
n, or a higher number of this owner, has all that was stable before (docs/design/011-format-2.md).

That holds because a number is set only in place of the one that was confirmed last, or of a higher one, and no number
is ever set twice, not even by a request that comes late: what is written after a loss cannot vouch for what was lost.
"""

from collections.abc import Collection

from channelindex.blocks import N_SLOTS
from channelindex.errors import OwnershipLost
from channelindex.redis.link import Link
from channelindex.stores.redis.keys import Keys

SWEEP_INTERVAL = 3600
"""Marks between two sweeps, about two hours: an owner leaves 64 small fields behind, which its moments may outlive."""


class MarkSetter:
    """Sets the marks of one owner. An epoch has numbers of its own, from 1 on."""

    def __init__(self, link: Link, keys: Keys) -> None:
        self._link = link
        self._keys = keys
        self._confirmed: dict[int, int] = {}
        self._attempted: dict[int, int] = {}

    def set(self, epoch: int) -> int:
        """Set the next mark of *epoch* in all slots, and return its number: it is one more, also after an error.

        Raises:
            OwnershipLost: a slot has lost marks of ours.
        """
        confirmed, number = self._confirmed.get(epoch, 0), self._attempted.get(epoch, 0) + 1
        self._attempted[epoch] = number
        assert number > confirmed, "no number is set twice"
        arguments = (epoch, confirmed, number)
        replies = self._link.run_all("mark", [((self._keys.slot(slot),), arguments) for slot in range(N_SLOTS)])
        assert len(replies) == N_SLOTS, "each slot answers"
        if not all(replies):
            raise OwnershipLost(f"epoch {epoch}: slot {replies.index(0)} of index.store has lost what it acknowledged")
        return number

    def confirm(self, epoch: int, number: int) -> None:
        """Note that mark *number* is in all slots, and that all of them were those of the same servers meanwhile."""
        assert self._confirmed.get(epoch, 0) < number <= self._attempted[epoch]
        self._confirmed[epoch] = number


def read_marks(link: Link, keys: Keys) -> list[dict[int, int]]:
    """Per slot the number of each epoch."""
    found = link.pipeline([("HGETALL", keys.marks(slot)) for slot in range(N_SLOTS)])
    assert len(found) == N_SLOTS
    return [{int(epoch): int(number) for epoch, number in zip(flat[::2], flat[1::2], strict=True)} for flat in found]


def sweep_marks(link: Link, keys: Keys, used: Collection[int], present: int) -> None:
    """Remove the marks of epochs before *present* that are not *used* by any moment."""
    gone = [
        (keys.marks(slot), [epoch for epoch in marks if epoch < present and epoch not in used])
        for slot, marks in enumerate(read_marks(link, keys))
    ]
    link.pipeline([("HDEL", key, *epochs) for key, epochs in gone if epochs])
