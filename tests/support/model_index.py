"""An abstract index with all its actors: owners that come, go and roll back, compactors, a reader. Every step of it.

One partition of one vbucket, one channel. The record and its rules are the program's own (`channelindex.epochs`), and
so is what a compactor leaves out (`model_compactor.py`) and what a token is worth; the store is `model_channel.py`.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from channelindex import epochs
from channelindex.errors import StaleEpoch
from tests.support import model_compactor
from tests.support.model_channel import OUTPUT, expired, switch
from tests.support.model_compactor import Compactor, Ripe, Rules
from tests.support.model_owner import OwnerSteps
from tests.support.model_reader import ReaderSteps
from tests.support.model_source import Source
from tests.support.model_state import PromiseBroken, State, with_compactor


@dataclass(frozen=True)
class World(OwnerSteps, ReaderSteps):
    """How large the world is, and where the walk begins.

    `groups` is the group of each owner, in the order in which they begin; `runs` how many compactions each compactor
    begins; a block is full with `full` entries. Without `zombies`, an owner ends when the next one begins. At the
    beginning the first owner has indexed so many changes, and the reader was told so many. With `reads_at_once`,
    nothing happens while it reads.
    """

    source: Source
    groups: tuple[int, ...] = (0, 0)
    runs: tuple[int, ...] = (1,)
    full: int = 1
    zombies: bool = True
    indexed: int = 0
    told: int = 0
    fails_over: bool = True
    reads: bool = True
    reads_at_once: bool = False
    rules: Rules = field(default=Rules())

    def first(self) -> State:
        """Where the walk begins."""
        state = State(epochs.new_record(0, 1), compactors=tuple(map(Compactor, self.runs)))
        state = next(self._start(state))
        for seqno in range(1, self.indexed + 1):
            state = self._receive(state, 0, state.owners[0])
            state = next(self._arrive(state, 0, state.owners[0]))
            state = next(self._advance(state, 0, state.owners[0]))
            for _ in range(3 if seqno == self.told else 0):  # take a view, list, read
                state = next(self._read_on(state))
        return state

    def walk(self, most: int = 10_000_000) -> int:
        """Visit every state that can be reached, nearest first, *most* at most; how many there are.

        Raises:
            PromiseBroken: with the number of states until then.
        """
        first = self.first()
        waiting, seen = deque([first]), {first}
        try:
            while waiting and len(seen) < most:
                for following in self.steps(waiting.popleft()):
                    size = len(seen)
                    seen.add(following)  # not looked up before: to hash a state takes as long as to make it
                    if len(seen) > size:
                        self.check(following)
                        waiting.append(following)
        except PromiseBroken as error:
            raise PromiseBroken(f"after {len(seen)} states: {error}") from error
        return len(seen)

    def steps(self, state: State) -> Iterator[State]:
        """Everything that can happen next."""
        if self.fails_over and state.branch == 0:
            yield state._replace(branch=1, highs=(state.highs[0], min(self.source.kept, state.highs[0])))
        if len(state.owners) < len(self.groups):
            yield from self._start(state)
        ripe = Ripe(state.record.epoch, *state.record.stable)
        if any(compactor.n_runs for compactor in state.compactors) and ripe != state.ripe:
            yield state._replace(ripe=ripe)
        after = expired(state.channel)
        if after != state.channel:
            yield state._replace(channel=after)
        for position, owner in enumerate(state.owners):
            yield from self._arrive(state, position, owner)
            if owner.is_alive:
                yield from self._own(state, position, owner)
        for position, compactor in enumerate(state.compactors):
            yield from self._compact(state, position, compactor)
        if self.reads:
            yield from self._read(state)

    def _compact(self, state: State, position: int, one: Compactor) -> Iterator[State]:
        rules = self.rules
        if one.wanted:
            yield from self._switch(state, position, one)
        elif one.listed:
            present = one.present or frozenset({state.record.epoch})
            for part in model_compactor.parts(one.listed, present, rules):
                known = one._replace(present=present)
                done = model_compactor.read_and_write(state.channel, known, OUTPUT + state.n_outputs, part, rules)
                if done:
                    channel, wanted = done
                    after = one._replace(wanted=wanted, listed=None, present=frozenset())
                    state_after = state._replace(channel=channel, n_outputs=state.n_outputs + 1)
                    yield with_compactor(state_after, position, after)
            if one.listed.generation != state.channel.generation:
                yield with_compactor(state, position, one._replace(listed=None, present=frozenset()))
        elif one.is_fenced and one.n_runs:
            if rules.fault == model_compactor.EPOCHS_FIRST and not one.present:
                yield with_compactor(state, position, one._replace(present=frozenset({state.record.epoch})))
            elif state.channel.groups:
                listed = state.channel._replace(blocks=())
                yield with_compactor(state, position, one._replace(listed=listed, n_runs=one.n_runs - 1))
        elif one.view:
            try:
                record = model_compactor.fence(state.record, one.view, rules.fault)
            except StaleEpoch:
                yield with_compactor(state, position, one._replace(view=None))
            else:
                yield with_compactor(state._replace(record=record), position, one._replace(is_fenced=True))
        elif one.n_runs and state.ripe.epoch:
            view = model_compactor.take_view(state.record, state.ripe, rules.fault)
            yield with_compactor(state, position, one._replace(view=view))

    def _switch(self, state: State, position: int, one: Compactor) -> Iterator[State]:
        assert one.wanted
        after = switch(state.channel, one.wanted)
        one = one._replace(wanted=None) if one.n_runs else Compactor(0)
        state = with_compactor(state, position, one)
        if after:
            view = state.compactors[position].view
            if self.rules.fault == model_compactor.FENCED_LATE and view:
                state = state._replace(record=model_compactor.fence_late(state.record, view))
            yield state._replace(channel=after)
        else:
            yield state
