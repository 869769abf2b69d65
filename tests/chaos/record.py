"""What a run under faults leaves behind to be judged, written by whoever saw it. No judgement here."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.history import Line


class Reader(NamedTuple):
    """A reader that followed one channel; it may have been told nothing. No two have the same name."""

    name: str
    channel: str


NOWHERE = -1
"""The vbucket of a telling that names none, as over HTTP."""


class Told(NamedTuple):
    """A change that a following reader was told of. `reader` names it; its tellings are in their order.

    `at` are monotonic seconds, after the telling. `stable` is the stable seqno of `vb`, read from the store after the
    telling; -1 where it could not be read. Over HTTP, `vb` is NOWHERE and `seqno` 0.
    """

    reader: str
    at: float
    channel: str
    doc: str
    rev: str
    vb: int
    seqno: int
    removed: bool
    deleted: bool
    stable: int
    withdrawn: bool = False


class StableSample(NamedTuple):
    """The stable clock at a time (monotonic seconds): seqno by vbucket."""

    at: float
    stable: tuple[int, ...]


class Rollback(NamedTuple):
    """From `begun` to `ended` (monotonic seconds) the bucket was made to lose the newest seqnos of `vbs`.

    The index follows within an unknown time after `begun`, and seemed to have done so at `followed`. `kept` are the
    high seqnos that were left, by the order of `vbs`. One that `returns` took nothing: the index goes back a little.
    One is there `again` if the store may have lost that the index followed it.
    """

    begun: float
    ended: float
    vbs: tuple[int, ...]
    kept: tuple[int, ...]
    followed: float = math.inf
    returns: bool = False
    again: bool = False

    def once_more(self, at: float) -> "Rollback":
        """What the index follows again if the store loses, at that time, that it has followed this one."""
        assert self.begun <= at
        return Rollback(at, at, self.vbs, self.kept, again=True)


@dataclass
class Record:
    """Everything that a run leaves behind but the index itself.

    `written` are the revisions that the bucket took and kept, in their order; `taken_back` those that it took and lost.
    `readers` are those that were to be told, `told` what they were.
    """

    written: list[Line] = field(default_factory=list)
    taken_back: list[Line] = field(default_factory=list)
    readers: list[Reader] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    samples: list[StableSample] = field(default_factory=list)
    rollbacks: list[Rollback] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        """Write it below *folder*, a file of JSON lines for each part."""
        for name in self.__dataclass_fields__:
            lines = (json.dumps(item) for item in getattr(self, name))
            (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))

    @classmethod
    def load(cls, folder: Path) -> "Record":
        """What `save` wrote."""

        def lines(name: str) -> list[Any]:
            return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]

        return cls(
            lines("written"),
            lines("taken_back"),
            [Reader(*item) for item in lines("readers")],
            [Told(*item) for item in lines("told")],
            [StableSample(at, tuple(stable)) for at, stable in lines("samples")],
            [Rollback(b, e, tuple(vbs), tuple(kept), *more) for b, e, vbs, kept, *more in lines("rollbacks")],
        )
