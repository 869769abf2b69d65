"""The reader of an abstract index, and what is promised to readers."""

from collections.abc import Iterable, Iterator
from functools import lru_cache

from channelindex.blocks import FORMAT_VERSION
from channelindex.epochs import Bounds, PartitionRecord
from channelindex.errors import TokenAhead
from channelindex.model import IndexMeta
from channelindex.reading.since_token import MAX_SEQNO, Delivered, Token
from channelindex.reading.snapshot import Archives, History, IndexSnapshot, TakenBack
from channelindex.stores.memory import MemoryIndex, MemoryReader
from tests.support.model_channel import OUTPUT, Channel, Entry, unnamed
from tests.support.model_compactor import Rules
from tests.support.model_source import Source
from tests.support.model_state import PromiseBroken, Reader, State

META = IndexMeta(FORMAT_VERSION, n_vbuckets=1, n_partitions=1, source_uuid="s", index_uuid="i")
_NO_ARCHIVES = Archives(MemoryReader(MemoryIndex(), "none"))

NO_SECOND_LOOK = "a block that is gone is damage"
REFUSES_RESTART = "a token is refused while the vbucket is streamed anew"
NO_CHECK = "no reader asks for the floor"
HOLDS_NOTHING = "whose token is lowered to 0 is taken for one that begins"
REFUSES_ALL = "the floor refuses tokens at 0, too"
SAYS_NOTHING = "what was taken back is withdrawn from nobody"


class ReaderSteps:
    """The steps of the reader in a world: see `World`."""

    source: Source
    rules: Rules
    reads_at_once: bool

    def _read(self, state: State) -> Iterator[State]:
        """The next step of the reader; with `reads_at_once`, all of its next read."""
        for after in self._read_on(state):
            yield from self._read(after) if self.reads_at_once and after.reader.view else (after,)

    def _read_on(self, state: State) -> Iterator[State]:
        reader, channel = state.reader, state.channel
        if reader.view is None:
            if (reader.epoch, reader.since) != (state.record.epoch, *state.record.stable):
                since = self._since(state)
                yield state._replace(reader=reader._replace(view=state.record, above=since))
        elif reader.generation < 0:
            yield self._list(state)
        else:
            blocks = [
                channel.block(name, number) for name, first, last in reader.listed for number in range(first, last + 1)
            ]
            there = [entry for block in blocks if block for entry in block.entries]
            taken = _taken_back(reader.view, reader.epoch, reader.since, reader.delivered)
            found = reader.found | {
                entry for entry in there if _is_visible(reader.view, entry) or _tells_of(reader.view, entry, taken)
            }
            if None in blocks:
                if channel.generation == reader.generation or self.rules.fault == NO_SECOND_LOOK:
                    raise PromiseBroken(f"a block is gone, says a reader: {reader}")
                yield state._replace(reader=reader._replace(generation=-1, listed=(), found=found))
            else:
                yield self._told(state, found)

    def _list(self, state: State) -> State:
        reader, channel = state.reader, state.channel
        assert reader.view
        heard = reader.above or MAX_SEQNO if self.rules.fault == HOLDS_NOTHING else _heard(reader.view, reader)
        if heard < channel.floor and self.rules.fault != NO_CHECK:
            return state._replace(reader=Reader())  # refused: it begins anew, and drops what it knows
        if not reader.since and channel.floor and self.rules.fault == REFUSES_ALL:
            raise PromiseBroken("a token at 0 is refused")
        is_returning = _taken_back(reader.view, reader.epoch, reader.since, reader.delivered) is not None
        listed = [
            (group.name, group.first, group.number)
            for group in channel.groups
            if group.name < OUTPUT
            or min(group.clock[1], MAX_SEQNO if is_returning else _bound(reader.view, group.clock[0])) > reader.above
        ]
        return state._replace(reader=reader._replace(generation=channel.generation, listed=tuple(listed)))

    def _told(self, state: State, found: frozenset[Entry]) -> State:
        """The read ends: hold what is told against what the source said, and remember it."""
        reader = state.reader
        assert reader.view
        (stable,) = reader.view.stable
        told = _newest_of(entry for entry in found if reader.above < entry.seqno and _is_visible(reader.view, entry))
        is_young = stable >= state.ripe.seqno and reader.view.epoch >= state.ripe.epoch
        branch = reader.view.checkpoints[0].vbuuid
        expected = self._expected(state, branch, stable)
        for entry in told:
            upto = stable if is_young else entry.seqno
            if entry._replace(epoch=0) not in self.source.newest(branch, upto):
                raise PromiseBroken(f"a reader is told {entry} of branch {branch} at {stable}")
        if is_young:
            for entry in expected:
                if entry.seqno > reader.above and entry not in _plain(told) and self._matters(entry, reader.known):
                    raise PromiseBroken(f"a reader at {reader.above} is not told {entry} at {stable}")
        others = {entry for entry in reader.known if entry.doc not in {new.doc for new in told}}
        others = self._left(state, branch, found, frozenset(others), is_young=is_young)
        resumed = _resumed(reader.view, reader.epoch, reader.since, reader.delivered)
        delivered = Delivered.NOTHING if stable else resumed.delivered  # as the last page says
        known = frozenset(others | _plain(told))
        return state._replace(reader=Reader(reader.view.epoch, stable, delivered, known))

    def _left(
        self, state: State, branch: int, found: frozenset[Entry], known: frozenset[Entry], *, is_young: bool
    ) -> set[Entry]:
        """What is left of *known*, of which nothing else was told, when the reader was told what is withdrawn.

        What is there is not withdrawn, unless it has yet to be streamed anew. What a rollback took back and nothing
        replaced is, but for who comes when it has been dead for `dead_retention`: nothing is promised to that one, so
        it is forgotten here.
        """
        reader = state.reader
        assert reader.view
        taken = _taken_back(reader.view, reader.epoch, reader.since, reader.delivered)
        withdrawn = _withdrawn(reader.view, found, taken) if self.rules.fault != SAYS_NOTHING else set[str]()
        (stable,) = reader.view.stable
        wrong = withdrawn & {entry.doc for entry in self._expected(state, branch, stable)}
        if is_young and wrong:
            raise PromiseBroken(f"a reader at {reader.since} is told that {wrong} is withdrawn")
        there = {entry.doc for entry in self.source.newest(branch, max((stable, *reader.view.restarting)))}
        left: set[Entry] = set()
        for entry in known:
            if not is_young or entry.gone or entry.doc in there:
                left |= set() if entry.doc in withdrawn else {entry}
            elif entry.doc not in withdrawn and not _died_before(reader.view, reader.epoch, entry, state.ripe.epoch):
                raise PromiseBroken(f"nobody tells a reader at {reader.since} that {entry} is withdrawn")
        return left

    def _matters(self, entry: Entry, known: frozenset[Entry]) -> bool:
        """True unless it is the deletion of a document that the reader does not have."""
        return not entry.gone or any(each.doc == entry.doc and not each.gone for each in known)

    def _since(self, state: State) -> int:
        """The reader's token lowered to the record, as `IndexSnapshot.resume` does."""
        record = state.record
        if self.rules.fault == REFUSES_RESTART:
            record = record._replace(restarting=())
        return _resumed(record, state.reader.epoch, state.reader.since, state.reader.delivered).seqnos[0]

    def _expected(self, state: State, branch: int, stable: int) -> list[Entry]:
        """The newest of each document, but those that a stream anew did not bring any more."""
        newest = self.source.newest(branch, stable)
        return [entry for entry in newest if (branch, entry.seqno) not in state.skipped]

    def check(self, state: State) -> None:
        """Hold the promises against *state*.

        Raises:
            PromiseBroken: which one.
        """
        for problem in unnamed(state.channel):
            raise PromiseBroken(problem)
        record, (stable,) = state.record, state.record.stable
        branch = record.checkpoints[0].vbuuid
        newest = self.source.newest(branch, stable)
        told = _plain(_answer(state.channel, record))
        for entry in told:
            if entry not in newest:
                raise PromiseBroken(f"phantom: {entry} of branch {branch} at {stable}")
        expected = self._expected(state, branch, stable)
        for entry in expected:
            if entry not in told and not entry.gone:
                raise PromiseBroken(f"{entry} of branch {branch} is lost at {stable}")
        since = self._since(state)
        known = state.reader.known
        for entry in expected:
            if entry.seqno <= min(since, stable) and entry not in known and self._matters(entry, known):
                raise PromiseBroken(f"the reader at {since} was not told {entry}, knows {sorted(known)}")


def _withdrawn(record: PartitionRecord, found: frozenset[Entry], taken: TakenBack | None) -> set[str]:
    """The documents of which a reader is told that they are withdrawn: `reading.withdrawn` for one vbucket."""
    if taken is None:
        return set()
    limits = {entry: _dead_limits(record, entry.epoch, taken) for entry in found}
    dead = _newest_of(entry for entry, (live, told, _) in limits.items() if live < entry.seqno <= told)
    there = {entry.doc for entry, (live, _, there) in limits.items() if entry.seqno <= min(live, there)}
    return {entry.doc for entry in dead if not entry.gone} - there


def _tells_of(record: PartitionRecord, entry: Entry, taken: TakenBack | None) -> bool:
    """True if *entry* says what is withdrawn: it is dead, or there."""
    if taken is None:
        return False
    live, told, there = _dead_limits(record, entry.epoch, taken)
    return live < entry.seqno <= told or entry.seqno <= min(live, there)


def _died_before(record: PartitionRecord, epoch: int, entry: Entry, before: int) -> bool:
    """True if the start after *epoch* that took back *entry* is of *before* or older."""
    took_back = [start.epoch for start in record.history if start.epoch > epoch and start.starts[0] < entry.seqno]
    return bool(took_back) and min(took_back) <= before


def _plain(entries: frozenset[Entry]) -> frozenset[Entry]:
    return frozenset(entry._replace(epoch=0) for entry in entries)


def _newest_of(entries: Iterable[Entry]) -> frozenset[Entry]:
    newest: dict[str, Entry] = {}
    for entry in entries:
        if entry.doc not in newest or newest[entry.doc].seqno < entry.seqno:
            newest[entry.doc] = entry
    return frozenset(newest.values())


@lru_cache(20_000)
def _answer(channel: Channel, record: PartitionRecord) -> frozenset[Entry]:
    """What a reader from the beginning is told now."""
    blocks = [block for group in channel.groups for block in channel.named(group) if block]
    return _newest_of(entry for block in blocks for entry in block.entries if _is_visible(record, entry))


def _is_visible(record: PartitionRecord, entry: Entry) -> bool:
    return entry.epoch <= record.epoch and entry.seqno <= min(*record.stable, _bound(record, entry.epoch))


@lru_cache(20_000)
def _resumed(record: PartitionRecord, epoch: int, since: int, delivered: Delivered) -> Token:
    """The token of a reader lowered to *record*.

    Raises:
        PromiseBroken: it is refused.
    """
    try:
        return _snapshot(record).resume(Token(0, 0, (epoch,), (since,), (since,), delivered))
    except TokenAhead as error:
        raise PromiseBroken(f"a token is refused: {error}") from error


@lru_cache(20_000)
def _taken_back(record: PartitionRecord, epoch: int, since: int, delivered: Delivered) -> TakenBack | None:
    """What was taken back of what a reader had got."""
    return _snapshot(record).taken_back(Token(0, 0, (epoch,), (since,), (since,), delivered)).get(0)


@lru_cache(20_000)
def _dead_limits(record: PartitionRecord, epoch: int, taken: TakenBack) -> tuple[int, int, int]:
    return _snapshot(record).dead_limits(epoch, 0, taken)


def _heard(record: PartitionRecord, reader: Reader) -> int:
    """Up to where the reader knows of every removal that concerns it."""
    token = Token(0, 0, (reader.epoch,), (reader.since,), (reader.since,), reader.delivered)
    return _snapshot(record).heard_upto(token, 0)


def _snapshot(record: PartitionRecord) -> IndexSnapshot:
    return IndexSnapshot(META, list(record.stable), History([record], _NO_ARCHIVES))


@lru_cache(20_000)
def _bound(record: PartitionRecord, epoch: int) -> int:
    return Bounds(record).bound(epoch, 0)
