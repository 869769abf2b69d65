"""Rounds get into the rings in order, under their epoch, and become stable with the last writer's commit."""

import select
from contextlib import closing

import pytest

from channelindex.errors import OwnershipLost
from channelindex.model import Checkpoint
from workers.pipeline.beats import BEAT_S, UNASKED_S
from workers.pipeline.frames import decode_frame
from workers.pipeline.outbox import RingOutbox
from workers.pipeline.ring import Bell, Ring
from workers.pipeline.round import Round


def a_round(seqno, *channels_by_writer, principals=()):
    """A round of vbucket 1 up to *seqno* with an entry in each of the channels."""
    entry = b"\0\1" + seqno.to_bytes(8, "big") + b"entry"
    sections = [{channel: [entry] for channel in channels} for channels in channels_by_writer]
    names = [list(principals), *([] for _ in channels_by_writer[1:])]
    return Round(sections, names, {1: Checkpoint(7, seqno, seqno, seqno)}, [], 1, sum(map(len, channels_by_writer)))


def is_rung(bell):
    return bool(select.select([bell], [], [], 0)[0])


@pytest.fixture
def rings():
    return [Ring(1 << 10), Ring(1 << 10)]


@pytest.fixture
def bells():
    with closing(Bell()) as first, closing(Bell()) as second:
        yield [first, second]


@pytest.fixture
def outbox(rings, bells):
    made = RingOutbox(rings, bells)
    made.begin(5)
    for bell in bells:
        bell.clear()
    return made


def channels_of(ring):
    return [channel for payload in ring.take(1 << 20) for channel, _ in decode_frame(payload).channels]


def test_an_epoch_that_begins_is_in_every_ring_and_wakes_every_writer(rings, bells):
    RingOutbox(rings, bells).begin(7)
    assert [ring.epoch for ring in rings] == [7, 7]
    assert all(map(is_rung, bells)), "one that died may not have come to it"


def test_each_writer_gets_its_channels_and_is_woken(outbox, rings, bells):
    outbox.put(a_round(3, ["a"], []), 5, "g")
    assert outbox.flush()
    assert [is_rung(bell) for bell in bells] == [True, False]
    assert (channels_of(rings[0]), channels_of(rings[1])) == (["a"], [])


def test_a_writer_that_looks_at_beats_is_not_woken_for_what_comes_soon_after_one(outbox, rings, bells, monkeypatch):
    rings[0].look_at_beats(looks=True)
    rung = []
    for seqno, after_s in [(1, 0.0), (2, UNASKED_S)]:
        monkeypatch.setattr("time.monotonic", lambda after_s=after_s: 7 * BEAT_S + after_s)
        outbox.put(a_round(seqno, ["a"], ["b"]), 5, "g")
        assert outbox.flush()
        rung.append([is_rung(bell) for bell in bells])
    assert rung == [[False, True], [True, True]]
    rings[0].reset_consumer()
    assert not rings[0].is_awaited(7 * BEAT_S), "one that begins looks first, and then waits for its bell"


def test_a_round_is_stable_when_both_writers_have_committed(outbox, rings):
    outbox.put(a_round(3, ["a"], ["b"]), 5, "g")
    outbox.flush()
    for ring in rings:
        assert outbox.pop_committed() == {}
        assert not outbox.empty
        assert outbox.vbuckets() == {1}
        ring.take(1 << 20)
        ring.commit()
    assert outbox.pop_committed() == {1: Checkpoint(7, 3, 3, 3)}
    assert outbox.empty
    assert outbox.vbuckets() == set()


def test_a_round_that_has_no_room_waits_and_counts_as_on_its_way(outbox, rings):
    assert rings[1].try_publish(bytes(rings[1].max_payload))
    assert rings[1].try_publish(bytes(rings[1].max_payload))
    outbox.put(a_round(3, ["a"], ["b"]), 5, "g")
    assert not outbox.flush()
    assert (outbox.empty, outbox.n_rounds, outbox.n_events, outbox.vbuckets()) == (False, 0, 1, {1})
    assert outbox.oldest_ns > 0
    rings[0].take(1 << 20)
    rings[0].commit()
    assert outbox.pop_committed() == {}, "its second half is nowhere yet"
    rings[1].take(1 << 20)
    rings[1].commit()
    assert outbox.flush()
    assert outbox.n_rounds == 1


def test_a_round_of_another_epoch_than_the_rings_is_refused(outbox):
    with pytest.raises(AssertionError, match="the writers would skip it"):
        outbox.put(a_round(3, ["a"], []), 4, "g")


def test_a_second_round_before_the_first_is_in_the_rings_is_refused(outbox):
    outbox.put(a_round(3, ["a"], []), 5, "g")
    with pytest.raises(AssertionError, match="not in the rings"):
        outbox.put(a_round(4, ["a"], []), 5, "g")


def test_a_round_of_principals_alone_is_sent_too(outbox, rings):
    outbox.put(a_round(3, [], [], principals=["_sync:user:a"]), 5, "g")
    outbox.flush()
    (payload,) = rings[0].take(1 << 20)
    assert decode_frame(payload).principals == ["_sync:user:a"]


def commit(ring, servers):
    ring.take(1 << 20)
    ring.commit(servers)


@pytest.mark.parametrize("took", [[2], [2, 1], [1, 2, 1]])
def test_what_other_servers_took_does_not_become_stable(outbox, rings, took):
    """Nor what came before or after it: the epoch is over, even if they are the right ones again."""
    outbox.begin(5, servers=1)
    for seqno, servers in enumerate(took, 1):
        outbox.put(a_round(seqno, ["a"], []), 5, "g")
        assert outbox.flush()
        commit(rings[0], servers)
    with pytest.raises(OwnershipLost, match="batch writer 0 wrote to other servers"):
        outbox.pop_committed()


def test_what_the_servers_of_the_epoch_took_becomes_stable_whoever_took_what_was_before(outbox, rings):
    commit(rings[0], 7)
    for servers in (1, 2, 1):
        outbox.begin(5, servers)
        outbox.put(a_round(3, ["a"], []), 5, "g")
        assert outbox.flush()
        commit(rings[0], servers)
        assert outbox.pop_committed() == {1: Checkpoint(7, 3, 3, 3)}


def test_servers_of_a_writer_that_has_nothing_of_the_epoch_do_not_matter(outbox, rings):
    outbox.begin(5, servers=1)
    commit(rings[1], 9)
    outbox.put(a_round(3, ["a"], []), 5, "g")
    assert outbox.flush()
    commit(rings[0], 1)
    assert outbox.pop_committed() == {1: Checkpoint(7, 3, 3, 3)}


def test_an_epoch_that_the_store_refused_is_over(outbox, rings, bells):
    outbox.put(a_round(3, ["a"], []), 5, "g")
    assert outbox.flush()
    rings[0].take(1 << 20)
    rings[0].refuse(5)
    with pytest.raises(OwnershipLost, match="refuses"):
        outbox.pop_committed()
    successor = RingOutbox(rings, bells)
    successor.begin(6)
    assert successor.pop_committed() == {}
