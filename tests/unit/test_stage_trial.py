"""The trial of `channelindex tune` moves rounds through a ring as a node does, however large they are."""

from channelindex import blocks
from channelindex.model import Entry
from workers.pipeline import stage_trial
from workers.pipeline.ring import Ring
from workers.pipeline.round import Round


def test_a_round_that_is_larger_than_the_ring_goes_through_in_parts():
    entries = {f"c{number}": [blocks.pack_entry(Entry(0, number + 1, b"k" * 40, "1-a", 0))] for number in range(100)}
    ring = Ring(1 << 10)
    ring.epoch = 3
    appends = stage_trial._through_ring(ring, Round([entries], [[]], {}, [], 100, 100), 0, "group")
    assert {append.channel: append.entries for append in appends} == {c: packed for c, (packed,) in entries.items()}
    assert ring.committed == ring.written
