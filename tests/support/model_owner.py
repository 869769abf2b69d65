"""The owners of an abstract index: they begin, receive, append, advance, roll back, and go on as zombies."""

from collections.abc import Iterator

from channelindex import epochs
from channelindex.epochs import EpochStart
from channelindex.errors import StaleEpoch
from channelindex.model import ORIGIN, Checkpoint
from tests.support.model_channel import Block, Channel, Entry, append, locate, rotate, with_block
from tests.support.model_compactor import Rules
from tests.support.model_source import Source
from tests.support.model_state import Owner, PromiseBroken, State, ended, with_owner

HEEDLESS = "begin takes no heed of what was compacted"
ALL_ANEW = "begin at 0 with a start at 0"
FORGETS_RESTART = "a second begin forgets that the first began at 0"
GIVES_UP = "a writer takes a block that is gone for lost"
REVIVES = "a blind append makes the block that it finds gone"
SAME_NUMBERS = "a group that begins again counts from 0"


class OwnerSteps:
    """The steps of owners in a world: see `World`."""

    source: Source
    groups: tuple[int, ...]
    full: int
    zombies: bool
    rules: Rules

    def _start(self, state: State) -> Iterator[State]:
        epoch = state.n_epochs + 1
        record = state.record
        if self.rules.fault == FORGETS_RESTART:
            record = record._replace(restarting=())
        record = epochs.begin(record, epoch, "owner")
        (stable,) = record.stable
        at = record.checkpoints[0]
        branch = at.vbuuid if stable else state.branch
        snapshot = at.snap_start, at.snap_end
        owner = Owner(epoch, self.groups[len(state.owners)], branch, stable, stable, snapshot, (at.snap_start,))
        before = state.owners if self.zombies else tuple(ended(one._replace(sent=())) for one in state.owners)
        yield state._replace(record=record, owners=(*before, owner), n_epochs=epoch)

    def _arrive(self, state: State, position: int, owner: Owner) -> Iterator[State]:
        """What is on its way arrives, whatever became of its sender."""
        if not owner.sent:
            return
        entry, *rest = owner.sent
        channel, number = self._appended(state.channel, owner, entry)
        active = None if number is None else (entry.epoch, number)
        counts = active and entry.epoch == owner.epoch
        written = max(owner.written, entry.seqno) if counts else owner.written
        owner = owner._replace(sent=tuple(rest), active=active, written=written)
        yield with_owner(state, position, owner)._replace(channel=channel)

    def _appended(self, channel: Channel, owner: Owner, entry: Entry) -> tuple[Channel, int | None]:
        """The channel with *entry*, and the block that it went to; None where it was refused."""
        known = owner.active is not None and owner.active[0] == entry.epoch
        number = owner.active[1] if owner.active and known else None
        if number is not None and (block := channel.block(owner.group, number)):
            if len(block.entries) < self.full:
                after = append(channel, owner.group, number, entry)
                assert after
                return after, number
            rotated = rotate(channel, owner.group, number, entry.epoch)
            if rotated:
                after = append(rotated, owner.group, number + 1, entry)
                assert after
                return after, number + 1
        elif number is not None and self.rules.fault == REVIVES:
            return with_block(channel, Block(owner.group, number, frozenset({entry}))), number
        elif number is not None and self.rules.fault == GIVES_UP:
            raise PromiseBroken(f"{entry} of owner {owner} finds its block gone")
        if self.rules.fault == SAME_NUMBERS:
            channel = channel._replace(next_number=0)
        located = locate(channel, owner.group, entry)
        return located or (channel, None)

    def _own(self, state: State, position: int, owner: Owner) -> Iterator[State]:
        source = self.source
        if owner.branch != state.branch:
            yield from self._reconnect(state, position, owner)
        elif owner.received < len(source.branches[owner.branch]) and not owner.sent:
            yield self._receive(state, position, owner)
        if owner.written > state.record.stable[0]:
            yield from self._advance(state, position, owner)

    def _advance(self, state: State, position: int, owner: Owner) -> Iterator[State]:
        try:
            record = epochs.advance(state.record, owner.epoch, {0: owner.checkpoint})
        except StaleEpoch:
            yield with_owner(state, position, owner._replace(is_alive=False))
        else:
            yield state._replace(record=record)

    def _receive(self, state: State, position: int, owner: Owner) -> State:
        seqno, branch = owner.received + 1, owner.branch
        is_brought = self.source.is_brought(branch, seqno, state.highs[branch], is_purged=state.is_purged)
        if owner.received >= owner.snapshot[1]:
            complete = (*owner.complete, owner.received)
            snapshot = owner.received, max(seqno, state.highs[branch])
            owner = owner._replace(snapshot=snapshot, complete=tuple(sorted(set(complete))))
        highs = [max(high, owner.snapshot[1]) if number == branch else high for number, high in enumerate(state.highs)]
        state = state._replace(highs=(highs[0], highs[1]))
        if is_brought:
            sent = (*owner.sent, self.source.entry(branch, seqno, owner.epoch))
            return with_owner(state, position, owner._replace(received=seqno, sent=sent))
        if self.source.is_superseded(branch, self.source.entry(branch, seqno, 0), state.highs[branch]):
            state = state._replace(skipped=state.skipped | {(branch, seqno)})
        written = seqno if owner.written == owner.received else owner.written
        return with_owner(state, position, owner._replace(received=seqno, written=written))

    def _reconnect(self, state: State, position: int, owner: Owner) -> Iterator[State]:
        """The source asks for a rollback where the owner has received more than the failover kept."""
        kept = min(self.source.kept, state.highs[0])
        start, end = owner.snapshot
        reach = end if start < owner.received < end else owner.received
        if reach <= kept:
            yield with_owner(state, position, owner._replace(branch=state.branch))
            return
        epoch, record = state.n_epochs + 1, state.record
        complete = [*owner.complete, *([owner.received] if reach == owner.received else [])]
        safe = max((seqno for seqno in complete if seqno <= kept), default=0)
        back = {0: Checkpoint(state.branch, safe, safe, safe) if safe else ORIGIN}
        if self.rules.fault == HEEDLESS:
            record = record._replace(compacted_through=())
        try:
            record = epochs.begin(record, epoch, "owner", back, only_if=owner.epoch)
        except StaleEpoch:
            yield with_owner(state, position, owner._replace(is_alive=False))
            return
        is_purged = bool(record.restarting)
        if self.rules.fault == ALL_ANEW and record.restarting:
            record = record._replace(history=(EpochStart(epoch, (0,)),), restarting=())
        (stable,) = record.stable
        at = record.checkpoints[0]
        snapshot = at.snap_start, at.snap_end
        owner = owner._replace(epoch=epoch, branch=state.branch, received=stable, written=stable, snapshot=snapshot)
        owner = owner._replace(complete=(at.snap_start,))
        state = with_owner(state, position, owner)
        yield state._replace(record=record, n_epochs=epoch, is_purged=is_purged)
