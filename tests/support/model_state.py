"""The state of an abstract index with all its actors, for models that visit every state."""

from typing import NamedTuple

from channelindex.epochs import PartitionRecord
from channelindex.model import Checkpoint
from channelindex.reading.since_token import Delivered
from tests.support.model_channel import Channel, Entry
from tests.support.model_compactor import Compactor, Ripe


class PromiseBroken(AssertionError):
    """A state that must not be reachable."""


class Owner(NamedTuple):
    """One owner, and what of it is on its way. `active` is (epoch, number) of its active block, if it knows it.

    `snapshot` is the one that it is in, from the seqno before it on: what is brought of it is true at its end only.
    `complete` are the ends of snapshots that it knows: to these it goes back (`channelindex.feeds.position`).
    """

    epoch: int
    group: int
    branch: int
    received: int
    written: int
    snapshot: tuple[int, int]
    complete: tuple[int, ...]
    sent: tuple[Entry, ...] = ()
    active: tuple[int, int] | None = None
    is_alive: bool = True

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint at what is written."""
        start, end = self.snapshot
        at = (start, end) if start <= self.written < end else (self.written, self.written)
        return Checkpoint(self.branch, self.written, *at)


class Reader(NamedTuple):
    """A reader: its token (epoch, seqno, delivered), what it knows of each document, and the read that it is in.

    `listed` are (group, first block, last block) that it has yet to read, `found` what it has so far.
    """

    epoch: int = 0
    since: int = 0
    delivered: Delivered = Delivered.NOTHING
    known: frozenset[Entry] = frozenset()
    view: PartitionRecord | None = None
    floor: int = 0
    above: int = 0
    generation: int = -1
    listed: tuple[tuple[int, int, int], ...] = ()
    found: frozenset[Entry] = frozenset()


class State(NamedTuple):
    """Everything at one moment.

    `highs` are the newest seqnos of the source's branches. `skipped` are the changes (branch, seqno) that a stream has
    left out for newer ones. With `is_purged`, the tombstones of the source are gone.
    """

    record: PartitionRecord
    channel: Channel = Channel()
    branch: int = 0
    highs: tuple[int, int] = (0, 0)
    skipped: frozenset[tuple[int, int]] = frozenset()
    is_purged: bool = False
    ripe: Ripe = Ripe()
    n_epochs: int = 0
    n_outputs: int = 0
    owners: tuple[Owner, ...] = ()
    compactors: tuple[Compactor, ...] = ()
    reader: Reader = Reader()


def ended(owner: Owner) -> Owner:
    """Leave of *owner* what matters when it has ended: what is on its way."""
    active = owner.active if owner.sent else None
    return Owner(owner.epoch, owner.group, 0, 0, 0, (0, 0), (), owner.sent, active, is_alive=False)


def with_owner(state: State, position: int, owner: Owner) -> State:
    """Put *owner* into its place."""
    if not owner.is_alive:
        owner = ended(owner)
    return state._replace(owners=(*state.owners[:position], owner, *state.owners[position + 1 :]))


def with_compactor(state: State, position: int, one: Compactor) -> State:
    """Put *one* into its place."""
    return state._replace(compactors=(*state.compactors[:position], one, *state.compactors[position + 1 :]))
