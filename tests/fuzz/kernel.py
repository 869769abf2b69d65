"""Mutated documents and frames into the compiled kernel and into Python, which must make the same of them.

`decoder_alone.c` is the faster half of it: the same documents, no Python, and nothing to compare.
"""

import random
from collections.abc import Sequence

from channelindex.feeds.base import SNAPPY, SNAPSHOT, Event
from channelindex.feeds.dcp.parser import decompress
from channelindex.model import Checkpoint
from tests.fuzz import documents, frames
from tests.fuzz.mutation import mutated
from tests.support.dcp_wire import marker
from tests.support.kernel_pairs import WITHIN_A_SNAPSHOT, ParserPair, RoundPair

CASES_PER_PAIR = 200
DOCUMENTS = 8
"""Mutated documents in one case."""
_PIECES = (
    *(
        b'"%s":' % name
        for name in (b"_sync", b"rev", b"channels", b"sequence", b"flags", b"deleted", b"seq", b"del", b"x")
    ),
    *(b"null", b"true", b"false", b"0", b"-1", b"1.5", b"1e5", b"18446744073709551615", b"18446744073709551616", b"01"),
    *(
        b'"a"',
        b'"*"',
        b'""',
        b'"\\u0061"',
        b'"\\ud800"',
        b'"\xc3\xa9"',
        b'"\xed\xa0\x80"',
        b'"\xff"',
        b'"1-%s"' % (b"0a" * 16),
    ),
    *(b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b" ", b"\n", b"\x00", b'"a":null,', b'{"seq":1,"rev":"1-a"}'),
)
"""What JSON with metadata is made of: a change that keeps a text whole gets deeper than one that breaks it."""
_REMOVALS = (
    b'{"_sync":{"rev":"3-c","sequence":9,"channels":{"a":null,"b":{"seq":%d,"rev":"%d-b","del":true},"c":{"seq":2}}}}'
)


def seeds() -> list[bytes]:
    """Values of `tests.fuzz.documents`, and documents that leave channels again and again."""
    return documents.seeds() + [_REMOVALS % (number, number) for number in range(4)]


def pieced(chance: random.Random, values: Sequence[bytes]) -> bytes:
    """One of *values* with some pieces put in, or in the place of others, most of them where JSON has its marks."""
    data = bytearray(chance.choice(values))
    for _ in range(chance.choice((1, 1, 2, 3))):
        marks = [at for at, byte in enumerate(data) if byte in b'{}[],:"'] or [0]
        at = chance.choice(marks) + chance.randrange(2)
        data[at : at + chance.choice((0, 0, 1, 4))] = chance.choice(_PIECES)
    return bytes(data)


class KernelDocumentTarget:
    """Gives one case after the other to two round builders."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._seeds = seeds()
        self._pairs: list[RoundPair] = []
        self.n_rejected = 0

    def case(self, number: int) -> list[Event]:
        """A round of `DOCUMENTS` mutated documents, and some markers of snapshots."""
        chance = random.Random(f"{self._seed}:{number}")
        events: list[Event] = []
        first = number * DOCUMENTS + 1
        for seqno in range(first, first + DOCUMENTS):
            if chance.random() < 0.2:
                purge_seqno = chance.choice(((), (chance.randrange(seqno),)))
                events.append((SNAPSHOT, 0, seqno, seqno + chance.randrange(DOCUMENTS), *purge_seqno))
            value = chance.choice((mutated, pieced, pieced))(chance, self._seeds)
            datatype = chance.choice(documents._DATATYPES)
            if datatype & SNAPPY:
                datatype, value = decompress(datatype, value)
            events.append((chance.randrange(3), 0, seqno, chance.choice(documents._KEYS), datatype, value))
        return events

    def run(self, number: int) -> None:
        """Run a case. Raises where the two differ."""
        if number % CASES_PER_PAIR == 0 or not self._pairs:
            self._pairs = [RoundPair(star_channel=star, n_rows=1 << star) for star in (False, True)]
        taken = self._pairs[number % 2].add(self.case(number))
        assert taken is not None, "a document moves the seqno, whatever it is"
        self.n_rejected += len(taken.quarantined) > DOCUMENTS // 3


class KernelFrameTarget:
    """Gives one case after the other to two frame parsers, and to other ones when those are done for."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._seeds = frames.seeds()
        self._pair: ParserPair | None = None
        self.n_rejected = 0

    def case(self, number: int) -> tuple[bytes, float]:
        """The bytes of a case, some frames of which one is mutated, and where they are cut."""
        chance = random.Random(f"{self._seed}:{number}")
        before = [chance.choice(self._seeds) for _ in range(chance.choice((0, 0, 1, 3)))]
        after = [chance.choice(self._seeds) for _ in range(chance.choice((0, 0, 1)))]
        return b"".join([*before, mutated(chance, self._seeds), *after]), chance.choice((0.0, 0.0, chance.random()))

    @staticmethod
    def _open(number: int) -> ParserPair:
        """Parsers whose streams go on in a snapshot, or have just begun one: markers are the kernel's only there."""
        begins = number % 4 < 2
        pair = ParserPair(
            prefix_bytes=number % 3, bodies=number % 2 == 0, at=Checkpoint(1) if begins else WITHIN_A_SNAPSHOT
        )
        if begins:
            assert pair.feed(marker(1, 0, 0, 1 << 40) + marker(2, 1, 0, 1 << 40)) == ""
        return pair

    def run(self, number: int) -> None:
        """Run a case. Raises where the two differ."""
        data, cut = self.case(number)
        if self._pair is None or number % frames.CASES_PER_SESSION == 0:
            self._pair = self._open(number)
        place = int(cut * len(data))
        if any(self._pair.feed(piece) for piece in (data[:place], data[place:])):
            self.n_rejected += 1
            self._pair = None
