"""The compiled kernel beside Python: both get the same, and all that both make of it must be equal."""

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from channelindex import kernel
from channelindex.decode.removals import RemovalMemory
from channelindex.decode.sync_gateway import SyncGatewayDecoder
from channelindex.errors import ChannelIndexError
from channelindex.feeds.base import Event
from channelindex.feeds.dcp.parser import FrameParser
from channelindex.feeds.dcp.streams import LIVE, Streams
from channelindex.mcbp import Frame
from channelindex.model import Checkpoint
from workers.pipeline.frames import mapping_of, pack_frames
from workers.pipeline.round import Round, RoundBuilder

ROOT = Path(__file__).resolve().parents[2]
GROUP = "0123456789abcdef"
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


class RoundPair:
    """Two round builders. *n_rows* is the size of their memory of removals."""

    def __init__(self, vbuckets: Sequence[int] = (0,), *, star_channel: bool = True, n_rows: int = 16) -> None:
        self._builders = [self._make(mode, vbuckets, star_channel, n_rows) for mode in (kernel.OFF, kernel.AUTO)]
        assert self._builders[0]._compiled is None
        assert self._builders[1]._compiled is not None

    @staticmethod
    def _make(mode: str, vbuckets: Sequence[int], star_channel: bool, n_rows: int) -> RoundBuilder:
        with using(mode):
            checkpoints = {vb: Checkpoint(snap_end=LIVE) for vb in vbuckets}
            builder = RoundBuilder(SyncGatewayDecoder(star_channel), 2, checkpoints)
        builder._removals = RemovalMemory(n_rows)
        return builder

    def add(self, events: Sequence[Event]) -> Round | None:
        """Give *events* to both, compare their rounds; return that of Python."""
        taken = []
        for builder in self._builders:
            builder.add(events)
            taken.append(builder.take())
        python, compiled = taken
        if python is None or compiled is None:
            assert python is compiled
            return None
        assert _facts(python) == _facts(compiled)
        for max_bytes in FRAME_BYTES:
            assert _packed(python, max_bytes) == _packed(compiled, max_bytes)
        memories = [builder._removals for builder in self._builders]
        assert memories[0].is_empty == memories[1].is_empty
        assert bytes(memories[0].words) == bytes(memories[1].words)
        return python


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
    """Two frame parsers, each with streams of its own for *vbuckets*, whose opaques begin with 1."""

    def __init__(self, vbuckets: Sequence[int] = (0, 1), *, prefix_bytes: int = 0, bodies: bool = True) -> None:
        self._streams = [self._opened(vbuckets) for _ in range(2)]
        self._frames: list[list[Frame]] = [[], []]
        self._parsers = []
        for mode, streams, frames in zip((kernel.OFF, kernel.AUTO), self._streams, self._frames, strict=True):
            with using(mode):
                parser = FrameParser(streams, frames.append)
            parser.expect(prefix_bytes, None if bodies else lambda key, datatype, value: not value)
            self._parsers.append(parser)
        assert self._parsers[1]._compiled is not None

    @staticmethod
    def _opened(vbuckets: Sequence[int]) -> Streams:
        streams = Streams({vb: Checkpoint(1, 0, 0, 1 << 40) for vb in vbuckets})
        for opaque, stream in enumerate(streams.take_due(0.0), 1):
            streams.accept(stream, opaque, ((1, 0),))
        return streams

    def drop(self, vb: int) -> None:
        """Have nobody want the stream of *vb* any more."""
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
        python, compiled = (self._state(number) for number in range(2))
        assert raised[0] == raised[1]
        assert python == compiled
        for parser, frames in zip(self._parsers, self._frames, strict=True):
            parser.events = []
            frames.clear()
        return raised[0]

    def _state(self, number: int) -> dict[str, Any]:
        parser, streams = self._parsers[number], self._streams[number]
        return {
            "events": parser.events,
            "types": [[type(item) for item in event] for event in parser.events],
            "frames": self._frames[number],
            "counted": parser.counted_bytes,
            "held": (parser._held, parser._held_bytes, parser._wanted_bytes),
            "last": parser._last and (parser._last[0].vb, parser._last[1]),
            "seqnos": [stream.seqno for stream in streams._by_vb.values()],
        }
