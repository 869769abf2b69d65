"""The reader of an abstract index, and what is promised to readers."""

from collections.abc import Iterable, Iterator
from functools import lru_cache

from channelindex.blocks import FORMAT_VERSION
from channelindex.epochs import Bounds, PartitionRecord
from channelindex.errors import TokenAhead
from channelindex.model import IndexMeta
from channelindex.reading.since_token import MAX_SEQNO, Delivered, Token
from channelindex.reading.snapshot import Archives, History, IndexSnapshot
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


class ReaderSteps:
    """The steps of the reader in a world: see `World`."""

    source: Source
    rules: Rules

    def _read(self, state: State) -> Iterator[State]:
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
            found = reader.found | {entry for entry in there if _is_visible(reader.view, entry)}
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
        listed = [
            (group.name, group.first, group.number)
            for group in channel.groups
            if group.name < OUTPUT or min(group.clock[1], _bound(reader.view, group.clock[0])) > reader.above
        ]
        return state._replace(reader=reader._replace(generation=channel.generation, listed=tuple(listed)))

    def _told(self, state: State, found: frozenset[Entry]) -> State:
        """The read ends: hold what is told against what the source said, and remember it."""
        reader = state.reader
        assert reader.view
        (stable,) = reader.view.stable
        told = _newest_of(entry for entry in found if reader.above < entry.seqno)
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
        resumed = _resumed(reader.view, reader.epoch, reader.since, reader.delivered)
        delivered = Delivered.NOTHING if stable else resumed.delivered  # as the last page says
        known = frozenset(others | _plain(told))
        return state._replace(reader=Reader(reader.view.epoch, stable, delivered, known))

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


def _heard(record: PartitionRecord, reader: Reader) -> int:
    """Up to where the reader knows of every removal that concerns it."""
    token = Token(0, 0, (reader.epoch,), (reader.since,), (reader.since,), reader.delivered)
    return _snapshot(record).heard_upto(token, 0)


def _snapshot(record: PartitionRecord) -> IndexSnapshot:
    return IndexSnapshot(META, list(record.stable), History([record], _NO_ARCHIVES))


@lru_cache(20_000)
def _bound(record: PartitionRecord, epoch: int) -> int:
    return Bounds(record).bound(epoch, 0)
