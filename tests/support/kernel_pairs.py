"""The compiled kernel beside Python: both get the same, and all that both make of it must be equal."""

import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from channelindex import kernel
from channelindex.decode.removals import RemovalMemory
from channelindex.decode.sync_gateway import SyncGatewayDecoder
from channelindex.errors import ChannelIndexError
from channelindex.feeds.base import EXPIRATION, SNAPSHOT, Event, Events
from channelindex.feeds.dcp.parser import FrameParser
from channelindex.feeds.dcp.streams import LIVE, Streams
from channelindex.mcbp import HEADER, REQUEST, Frame, Op
from channelindex.model import Checkpoint
from tests.support.dcp_wire import marker, marker_2_2
from workers.pipeline.frames import mapping_of, pack_frames
from workers.pipeline.round import Round, RoundBuilder

ROOT = Path(__file__).resolve().parents[2]
GROUP = "0123456789abcdef"
WITHIN_A_SNAPSHOT = Checkpoint(1, 0, 0, 1 << 40)
FRAME_BYTES = (300, 1 << 20)


def needs_kernel() -> None:
    """Skip the test where no kernel can be built. Where it can, it has to be there."""
    with using(kernel.AUTO):
        if kernel.chosen() is not None:
            return
        missing = build_script().missing()
        if missing is None:
            pytest.fail(f"{kernel.description()}: `make dev` builds it")
        pytest.skip(missing)


def build_script() -> ModuleType:
    """Return `kernel/build.py`, which is in no package."""
    spec = importlib.util.spec_from_file_location("kernel_build", ROOT / "kernel" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def using(mode: str) -> Iterator[None]:
    """Make what is made meanwhile with the kernel (`kernel.AUTO`) or without it (`kernel.OFF`)."""
    before = kernel._mode
    kernel.choose(mode)
    try:
        yield
    finally:
        kernel._mode = before


def in_frames(events: Sequence[Event]) -> Events:
    """Return *events* as the kernel has them after it has cut them out of their frames; others are tuples."""
    compiled = kernel._found().compiled
    assert compiled is not None
    made: Events = compiled.Events()
    for event in events:
        if event[0] > EXPIRATION and event[0] != SNAPSHOT:
            made.append(event)
            continue
        seqno = event[2]
        frame = _marker_frame(*event[1:]) if event[0] == SNAPSHOT else _document_frame(*event)
        stream = SimpleNamespace(vb=event[1], seqno=max(0, seqno - 1), snap_end=seqno, reach=0)
        end, _, _ = compiled.take_run(frame, 0, 0, 0, {7: stream}, made, None)
        assert end == len(frame)
        assert stream.snap_end == event[3] if event[0] == SNAPSHOT else stream.seqno == seqno
    assert [*made] == [*events]
    return made


def _document_frame(kind: int, vb: int, seqno: int, key: bytes, datatype: int, value: bytes) -> bytes:
    body = seqno.to_bytes(8, "big") + bytes(10) + key + value
    return HEADER.pack(REQUEST, 0x57 + kind, len(key), 18, datatype, vb, len(body), 7, bytes(8)) + body


def _marker_frame(vb: int, start: int, end: int, purge_seqno: int | None = None) -> bytes:
    return marker(7, vb, start, end) if purge_seqno is None else marker_2_2(7, vb, start, end, purge_seqno)


class RoundPair:
    """Two round builders, and one that gets documents in frames. *n_rows* is the size of their memory of removals."""

    def __init__(self, vbuckets: Sequence[int] = (0,), *, star_channel: bool = True, n_rows: int = 16) -> None:
        modes = (kernel.OFF, kernel.AUTO, kernel.AUTO)
        self._builders = [self._make(mode, vbuckets, star_channel, n_rows) for mode in modes]
        assert [builder._compiled is None for builder in self._builders] == [True, False, False]

    @staticmethod
    def _make(mode: str, vbuckets: Sequence[int], star_channel: bool, n_rows: int) -> RoundBuilder:
        with using(mode):
            checkpoints = {vb: Checkpoint(snap_end=LIVE) for vb in vbuckets}
            builder = RoundBuilder(SyncGatewayDecoder(star_channel), 2, checkpoints)
        builder._removals = RemovalMemory(n_rows)
        return builder

    def add(self, events: Sequence[Event]) -> Round | None:
        """Give *events* to all, compare their rounds; return that of Python."""
        taken = []
        forms: list[Callable[[Sequence[Event]], Iterable[Event]]] = [list, list, in_frames]
        for builder, form in zip(self._builders, forms, strict=True):
            builder.add(form(events))
            taken.append(builder.take())
            assert _places(builder) == _places(self._builders[0])
        python = taken[0]
        for builder, compiled in zip(self._builders[1:], taken[1:], strict=True):
            if python is None or compiled is None:
                assert python is compiled
                continue
            assert _facts(python) == _facts(compiled)
            for max_bytes in FRAME_BYTES:
                assert _packed(python, max_bytes) == _packed(compiled, max_bytes)
            memories = [each._removals for each in (self._builders[0], builder)]
            assert memories[0].is_empty == memories[1].is_empty
            assert bytes(memories[0].words) == bytes(memories[1].words)
        return python


def _places(builder: RoundBuilder) -> list[dict[str, Any]]:
    """All that is known of each position."""
    each = ((position, position.__slots__) for position in builder._positions.values())
    return [{name: getattr(position, name) for name in names} for position, names in each]


def _facts(taken: Round) -> dict[str, Any]:
    facts = taken._asdict()
    facts["sections"] = [[*mapping_of(sections).items()] for sections in taken.sections]
    assert [len(sections) for sections in taken.sections] == [len(items) for items in facts["sections"]]
    facts["quarantined"] = [found._replace(at=0) for found in taken.quarantined]
    return facts


def _packed(taken: Round, max_bytes: int) -> list[list[bytes] | str]:
    """The frames for each writer, or why there are none."""
    packed: list[list[bytes] | str] = []
    for sections, principals in zip(taken.sections, taken.principals, strict=True):
        try:
            packed.append(pack_frames(1 << 40, GROUP, sections, principals, max_bytes))
        except ValueError as error:
            packed.append(str(error))
    return packed


class ParserPair:
    """Two frame parsers, each with streams of its own for *vbuckets*, whose opaques begin with 1.

    They are opened *at* a checkpoint, by default within a snapshot that has no end here.
    """

    def __init__(
        self,
        vbuckets: Sequence[int] = (0, 1),
        *,
        prefix_bytes: int = 0,
        bodies: bool = True,
        at: Checkpoint = WITHIN_A_SNAPSHOT,
    ) -> None:
        self._streams = [self._opened(vbuckets, at) for _ in range(2)]
        self._frames: list[list[Frame]] = [[], []]
        self._parsers: list[FrameParser] = []
        for number, mode in enumerate((kernel.OFF, kernel.AUTO)):
            with using(mode):
                parser = FrameParser(self._streams[number], partial(self._on_frame, number))
            parser.expect(prefix_bytes, None if bodies else lambda key, datatype, value: not value)
            self._parsers.append(parser)
        assert self._parsers[1]._compiled is not None

    def _on_frame(self, number: int, frame: Frame) -> None:
        """Take markers of streams, as a session does."""
        if frame.magic == REQUEST and frame.opcode == Op.DCP_SNAPSHOT_MARKER:
            stream = self._streams[number].opened(frame.opaque, frame.vbucket)
            if stream is not None:
                self._parsers[number].events.append((SNAPSHOT, stream.vb, *stream.enter_snapshot(frame)))
                return
        self._frames[number].append(frame)

    @staticmethod
    def _opened(vbuckets: Sequence[int], at: Checkpoint = WITHIN_A_SNAPSHOT) -> Streams:
        streams = Streams(dict.fromkeys(vbuckets, at))
        for opaque, stream in enumerate(streams.take_due(0.0), 1):
            streams.accept(stream, opaque, ((1, 0),))
        return streams

    def drop(self, vb: int) -> None:
        """Unsubscribe from the stream of *vb*."""
        for streams in self._streams:
            streams.drop([vb])

    def feed(self, data: bytes) -> str:
        """Give *data* to both and compare what they make of it; return what they raised, or nothing."""
        raised = []
        for parser in self._parsers:
            try:
                parser.feed(data)
            except ChannelIndexError as error:
                raised.append(f"{type(error).__name__}: {error}")
            else:
                raised.append("")
        python, compiled = (self._state(number, is_over=bool(raised[0])) for number in range(2))
        assert raised[0] == raised[1]
        assert python == compiled
        for parser, frames in zip(self._parsers, self._frames, strict=True):
            parser.take_events()
            frames.clear()
        return raised[0]

    def _state(self, number: int, *, is_over: bool) -> dict[str, Any]:
        """What can be seen of a parser and its streams; nobody asks one that has raised for what it counted."""
        parser, streams = self._parsers[number], self._streams[number]
        return {
            "events": [*parser.events],
            "types": [[type(item) for item in event] for event in parser.events],
            "frames": self._frames[number],
            "counted": None if is_over else parser.counted_bytes,
            "held": (parser._held, parser._held_bytes, parser._frame_bytes),
            "last": None if is_over or parser._last is None else (parser._last[0].vb, parser._last[1]),
            "streams": [
                (stream.seqno, stream.snap_start, stream.snap_end, stream.purge_seqno)
                for stream in streams._by_vb.values()
            ],
        }
