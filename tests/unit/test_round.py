"""Events become rounds: what each writer has to append, and where each vbucket can be resumed."""

from typing import Any

import pytest

from channelindex import blocks
from channelindex.decode.base import Undecodable
from channelindex.feeds.base import ADVANCED, DELETION, HISTORY, MUTATION, ROLLBACK, SNAPSHOT
from channelindex.model import DELETED, ORIGIN, REMOVED, Checkpoint, Principal, Removal, Route
from workers.pipeline.round import RoundBuilder, shard_of


class Scripted:
    """A decoder that answers what the test put under the key, or raises it."""

    def __init__(self, answers):
        self._answers = answers

    def decode(self, kind, key, datatype, value):
        answer = self._answers[key]
        if isinstance(answer, Exception):
            raise answer
        return answer


def builder(answers=None, checkpoint=ORIGIN):
    return RoundBuilder(Scripted(answers or {}), 2, {5: checkpoint})


def mutation(seqno, key=b"doc", kind=MUTATION):
    return (kind, 5, seqno, key, 1, b"{}")


def entries(taken, channel):
    for sections in taken.sections:
        if channel in sections:
            return list(blocks.iter_entries(b"".join(sections[channel])))
    return []


def route(channels, sequence=0, rev="1-a", flags=0):
    return Route(rev, flags, sequence, channels)


def test_an_entry_goes_to_the_writer_of_its_channel():
    it = builder({b"doc": route({"a": None, "b": None})})
    it.add([mutation(7), mutation(9)])
    taken = it.take()
    for channel in ("a", "b"):
        assert channel in taken.sections[shard_of(channel, 2)]
        assert [(e.vb, e.seqno, e.key, e.rev) for e in entries(taken, channel)] == [
            (5, 7, b"doc", "1-a"),
            (5, 9, b"doc", "1-a"),
        ]
    assert (taken.n_events, taken.n_entries) == (2, 4)


def test_a_removal_is_flagged_and_carries_the_revision_that_removed():
    it = builder({b"doc": route({"a": Removal(3, "3-c", True)}, sequence=3, rev="3-c", flags=DELETED)})
    it.add([mutation(7, kind=DELETION)])
    (entry,) = entries(it.take(), "a")
    assert (entry.flags, entry.rev) == (REMOVED | DELETED, "3-c")


def test_no_seqno_is_lost_to_what_gives_no_entry():
    it = builder({b"foreign": None, b"bad": Undecodable("why")})
    it.add([mutation(1, b"foreign"), mutation(2, b"bad"), (ADVANCED, 5, 8)])
    taken = it.take()
    assert taken.checkpoints[5].seqno == 8
    assert [(q.vb, q.seqno, q.key, q.reason) for q in taken.quarantined] == [(5, 2, b"bad", "Undecodable: why")]
    assert taken.n_entries == 0


def test_a_decoder_that_crashes_costs_its_document_only():
    it = builder({b"doc": ZeroDivisionError("oops"), b"good": route({"a": None})})
    it.add([mutation(1), mutation(2, b"good")])
    taken = it.take()
    assert len(taken.quarantined) == 1
    assert [entry.key for entry in entries(taken, "a")] == [b"good"]


def test_a_principal_is_counted_by_its_writer_and_gives_no_entry():
    principal = Principal("_sync:user:alice", "user", "", "alice")
    it = builder({b"doc": principal})
    it.add([mutation(1)])
    taken = it.take()
    assert taken.principals[shard_of("_sync:user:alice", 2)] == ["_sync:user:alice"]
    assert taken.n_entries == 0


def test_within_a_snapshot_the_checkpoint_keeps_its_range():
    it = builder({b"doc": route({"a": None}, sequence=900)}, Checkpoint(1, 4, 4, 4))
    it.add([(HISTORY, 5, ((77, 0),)), (SNAPSHOT, 5, 5, 20), mutation(6)])
    assert it.take().checkpoints[5] == Checkpoint(77, 6, 4, 20)
    it.add([mutation(20)])
    assert it.take().checkpoints[5] == Checkpoint(77, 20, 20, 20)


def test_a_marker_for_what_is_still_to_come_does_not_reach_into_the_checkpoint():
    it = builder({b"doc": route({"a": None}, sequence=900)})
    it.add([(SNAPSHOT, 5, 0, 6), mutation(6), (SNAPSHOT, 5, 7, 9)])
    assert it.take().checkpoints[5] == Checkpoint(0, 6, 6, 6)


def test_a_snapshot_that_is_resumed_does_not_count_as_complete():
    it = builder({b"doc": route({"a": None}, sequence=900)}, Checkpoint(1, 8, 0, 20))
    it.add([(SNAPSHOT, 5, 0, 21), mutation(9), (SNAPSHOT, 5, 0, 25), mutation(10)])
    assert it.take().checkpoints[5] == Checkpoint(1, 10, 0, 25)


def test_a_removal_that_a_snapshot_swallowed_is_indexed_though_later_sequences_were_seen_in_it():
    swallowed = route({"a": Removal(150, "2-b", False), "b": None}, sequence=990, rev="9-z")
    it = builder({b"x": route({"c": None}, sequence=980), b"doc": swallowed}, Checkpoint(1, 4, 4, 4))
    it.add([(SNAPSHOT, 5, 5, 20), mutation(6, b"x"), mutation(20)])
    assert [(e.rev, e.flags) for e in entries(it.take(), "a")] == [("2-b", REMOVED)]


def removed(taken):
    return [(entry.seqno, entry.rev) for entry in entries(taken, "a") if entry.flags & REMOVED]


def test_the_entries_of_documents_that_left_channels_keep_the_order_of_the_feed():
    it = builder({b"doc": route({"a": Removal(3, "3-c", False), "b": None})})
    it.add([mutation(7), mutation(9)])
    assert [entry.seqno for entry in entries(it.take(), "b")] == [7, 9]


def test_a_removal_is_indexed_again_behind_a_version_without_it():
    removed = route({"a": Removal(50, "2-b", False), "b": None}, sequence=990, rev="9-z")
    answers = {b"doc": removed}
    it = builder(answers)
    it.add([mutation(1)])
    answers[b"doc"] = route({"a": None, "b": None}, sequence=991, rev="10-a")
    it.add([mutation(2)])
    answers[b"doc"] = removed
    it.add([mutation(3)])
    assert [(entry.seqno, entry.flags) for entry in entries(it.take(), "a")] == [(1, REMOVED), (2, 0), (3, REMOVED)]


def test_a_removal_that_was_indexed_with_the_last_version_is_not_indexed_again():
    removal = Removal(50, "2-b", False)
    it = builder({b"doc": route({"a": removal, "b": None}, sequence=990, rev="9-z")})
    it.add([mutation(6), mutation(7)])
    assert removed(it.take()) == [(6, "2-b")]
    it.add([mutation(8)])
    assert removed(it.take()) == []


@pytest.mark.parametrize("event", ["rollback", "join"])
def test_what_was_indexed_is_not_relied_on_once_it_may_have_been_taken_back(event):
    it = builder({b"doc": route({"a": Removal(50, "2-b", False)}, sequence=990, rev="9-z")})
    it.add([mutation(6)])
    assert removed(it.take()) == [(6, "2-b")]
    if event == "rollback":
        it.add([(ROLLBACK, 5, Checkpoint(9, 2, 2, 2))])
    else:
        it.begin({6: ORIGIN})
    it.add([mutation(7)])
    assert removed(it.take()) == [(7, "2-b")]


def test_the_checkpoint_names_the_branch_of_history_that_its_seqno_lies_on():
    it = builder({b"doc": None}, Checkpoint(1, 3, 3, 3, 0))
    it.add([(HISTORY, 5, ((88, 5), (77, 0))), mutation(4)])
    assert it.take().checkpoints[5].vbuuid == 77
    it.add([mutation(6)])
    assert it.take().checkpoints[5].vbuuid == 88


def test_within_a_snapshot_over_a_branch_point_the_checkpoint_names_the_branch_of_the_snapshots_end():
    it = builder({b"doc": None})
    it.add([(HISTORY, 5, ((88, 5), (77, 0))), (SNAPSHOT, 5, 0, 10), mutation(3)])
    assert it.take().checkpoints[5] == Checkpoint(88, 3, 0, 10, 0)


def test_a_rollback_is_kept_for_the_worker():
    it = builder(checkpoint=Checkpoint(9, 2, 2, 2, 0))
    it.add([(ROLLBACK, 5, Checkpoint(9, 2, 2, 2, 0))])
    assert it.rollbacks == {5: Checkpoint(9, 2, 2, 2, 0)}
    assert it.rollback_since is not None
    assert it.take() is None


@pytest.mark.parametrize(("taken_back_to", "resumed_at"), [(30, 20), (20, 20), (19, 10), (12, 10), (9, 0)])
def test_a_rollback_goes_to_the_last_seqno_at_which_everything_was_there(taken_back_to, resumed_at):
    it = builder({b"doc": None})
    it.add([(SNAPSHOT, 5, 0, 10), mutation(10), (SNAPSHOT, 5, 11, 20), mutation(20)])
    it.add([(SNAPSHOT, 5, 21, 40), mutation(33), (ROLLBACK, 5, Checkpoint(9, taken_back_to, 0, 0, 0))])
    (rollback,) = it.rollbacks.values()
    assert (rollback.seqno, rollback.snap_start, rollback.snap_end) == (resumed_at,) * 3
    assert rollback.vbuuid == (9 if resumed_at else 0)


@pytest.mark.parametrize(
    ("key", "error", "reason"),
    [
        (b"doc", Undecodable("why"), "Undecodable: why"),
        (b"doc", KeyError("x" * 10_000), "KeyError: '" + "x" * 489),
        (b"doc", ValueError("\ud800"), "ValueError: \\ud800"),
        (b"k" * 256, ValueError("why"), "key of 256 bytes, at most 255 can be indexed"),
    ],
)
def test_the_reason_of_a_quarantine_is_short_and_text(key, error, reason):
    it = builder({key: error})
    it.add([mutation(1, key)])
    taken = it.take()
    assert taken is not None
    assert taken.quarantined[0].reason == reason


def test_a_snapshot_that_ends_before_its_end_is_left_by_a_marker_beyond_it():
    """What its marker promised was taken up by later snapshots: it is as complete as it will ever be."""
    it = builder({b"doc": route({"a": None}, sequence=900)})
    it.add([(SNAPSHOT, 5, 0, 10), mutation(6), (SNAPSHOT, 5, 11, 20), mutation(15)])
    assert it.take().checkpoints[5] == Checkpoint(0, 15, 6, 20)
    it.add([(ROLLBACK, 5, Checkpoint(9, 8, 0, 0, 0))])
    assert it.rollbacks[5].seqno == 6


@pytest.mark.parametrize(("taken_back_to", "resumed_at"), [(9, 5), (8, 5), (5, 5), (4, 0)])
def test_a_rollback_within_the_snapshot_that_was_resumed_goes_to_its_start(taken_back_to, resumed_at):
    it = builder({b"doc": None}, Checkpoint(1, 8, 5, 20, 0))
    it.add([(SNAPSHOT, 5, 5, 20), mutation(10), (ROLLBACK, 5, Checkpoint(9, taken_back_to, 0, 0, 0))])
    assert it.rollbacks[5].seqno == resumed_at


def test_a_snapshot_from_where_we_are_is_a_new_one_if_the_one_before_was_complete():
    it = builder({b"doc": None}, Checkpoint(1, 4, 4, 4))
    it.add([(SNAPSHOT, 5, 5, 20), mutation(20), (SNAPSHOT, 5, 20, 30), mutation(25)])
    assert it.take().checkpoints[5] == Checkpoint(1, 25, 20, 30)
    it.check()


def test_the_end_of_the_newest_snapshot_is_a_point_to_resume_at():
    it = builder({b"doc": None}, Checkpoint(1, 4, 4, 4))
    it.add([(SNAPSHOT, 5, 5, 20), mutation(20), (ROLLBACK, 5, Checkpoint(9, 20, 20, 20))])
    assert it.rollbacks[5] == Checkpoint(9, 20, 20, 20)


def test_a_checkpoint_names_the_branch_on_which_its_snapshot_ends():
    it = builder({b"doc": None}, Checkpoint(1, 4, 4, 4))
    it.add([(HISTORY, 5, ((9, 100), (7, 10), (1, 0))), (SNAPSHOT, 5, 5, 20), mutation(6)])
    assert it.take().checkpoints[5] == Checkpoint(7, 6, 4, 20)
    it.add([mutation(20), (SNAPSHOT, 5, 21, 100), mutation(50)])
    assert it.take().checkpoints[5] == Checkpoint(9, 50, 20, 100)


def test_a_seqno_without_a_document_moves_the_checkpoint_by_itself():
    it = builder()
    it.add([(ADVANCED, 5, 8)])
    assert it.take().checkpoints == {5: Checkpoint(0, 8, 8, 8, 0)}


def test_a_round_has_checkpoints_of_the_vbuckets_that_moved_and_of_no_other():
    it: Any = RoundBuilder(Scripted({b"doc": None}), 2, {4: ORIGIN, 5: ORIGIN})
    it.add([mutation(1)])
    assert it.take().checkpoints.keys() == {5}
    it.add([(ADVANCED, 4, 3)])
    assert it.take().checkpoints.keys() == {4}


def test_the_checkpoint_keeps_up_to_where_the_source_had_purged_and_a_rollback_forgets_it():
    it = builder({b"doc": None}, Checkpoint(1, 4, 4, 4, 3))
    it.add([(SNAPSHOT, 5, 4, 10), mutation(6)])
    assert it.take().checkpoints[5].purge_seqno == 3
    it.add([(SNAPSHOT, 5, 11, 20, 7), mutation(20), (SNAPSHOT, 5, 21, 21), mutation(21)])
    assert it.take().checkpoints[5].purge_seqno == 7
    it.add([(ROLLBACK, 5, Checkpoint(9, 20, 20, 20, 7))])
    assert it.rollbacks[5].purge_seqno == 0
