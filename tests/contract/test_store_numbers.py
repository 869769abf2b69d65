"""Numbers at which counters of 16, 24 and 32 bits, and clocks of variable width, go wrong: in every store."""

import pytest

from channelindex.model import Entry
from tests.support.stores import META, Backend, append, checkpoints, entry, visible_entries

SEQNOS = (2**16, 2**24 - 1, 2**24, 2**24 + 1, 2**32 - 1, 2**32, 2**48, 2**63, 2**64 - 1)


def stable_of(backend: Backend) -> tuple[int, ...]:
    return tuple(backend.reader().partition_records()[0].stable)


def test_a_clock_that_grows_over_16_bits_reads_back_as_it_was_after_each_restart(backend):
    owner = backend.owner()
    owner.create_or_check(META)
    owner.begin(0, 1, "n1")
    owner.advance(1, checkpoints({0: 1, 1: 2, 2: 3, 3: 4}))
    for epoch, clock in enumerate(
        [(70_000, 70_001, 70_002, 70_003), (70_000, 70_010, 70_002, 70_003), (2**24, 2**32, 2**48, 2**64 - 1)], start=2
    ):
        restarted = backend.owner()
        restarted.begin(0, epoch, "n1")
        restarted.advance(epoch, checkpoints(dict(enumerate(clock))))
        assert stable_of(backend) == clock


def test_entries_at_every_width_of_seqno_are_read_through_rotating_blocks(backend):
    owner = backend.owner()
    owner.create_or_check(META)
    owner.begin(0, 1, "n1")
    expected: set[Entry] = set()
    for seqno in SEQNOS:
        written = entry(1, seqno, key=f"doc-{seqno}")
        backend.writer(block_bytes=1).write([append("A", 1, written)])
        owner.advance(1, checkpoints({1: seqno}))
        expected.add(written)
        assert visible_entries(backend.reader(), "A") == expected


@pytest.mark.parametrize("seqno", SEQNOS)
def test_the_stable_clock_hides_exactly_what_is_above_it(backend, seqno):
    owner = backend.owner()
    owner.create_or_check(META)
    owner.begin(0, 1, "n1")
    backend.writer().write([append("A", 1, entry(1, seqno - 1), entry(1, seqno, key="above"))])
    owner.advance(1, checkpoints({1: seqno - 1}))
    assert {each.seqno for each in visible_entries(backend.reader(), "A")} == {seqno - 1}
