"""Which removals are indexed, and that a deduplicating feed loses none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channelindex.decode.removals import removal_is_due
from channelindex.model import Removal, Route
from channelindex.settings import DEFAULT_SLACK

SLACK = 10


def due(
    removal_sequence: int, known: int, *, sequence: int = 500, rev: str = "5-now", removal_rev: str = "3-old"
) -> bool:
    route = Route(rev, 0, sequence, {})
    return removal_is_due(Removal(removal_sequence, removal_rev, False), route, known, SLACK)


def test_removal_of_this_revision_is_due_however_far_the_feed_is():
    assert due(500, known=10_000)
    assert due(300, known=10_000, sequence=0, removal_rev="5-now")


def test_sequences_decide_over_revisions_where_both_are_known():
    assert not due(400, known=10_000, removal_rev="5-now")


def test_older_removal_is_not_due_once_the_feed_has_passed_it():
    assert not due(400, known=410)
    assert not due(400, known=10_000, sequence=0)


def test_older_removal_within_the_slack_is_due():
    assert due(400, known=409)
    assert due(400, known=300)


@pytest.mark.parametrize(("removal_sequence", "known"), [(0, 10_000), (0, 0), (400, 0)])
def test_removal_is_due_where_the_feed_cannot_tell(removal_sequence, known):
    assert due(removal_sequence, known)


def test_a_write_late_by_less_than_the_slack_is_due():
    route = Route("5-now", 0, 50_000, {})
    assert removal_is_due(Removal(30_001, "3-old", False), route, 30_000 + DEFAULT_SLACK, DEFAULT_SLACK)
    assert not removal_is_due(Removal(30_000, "3-old", False), route, 30_000 + DEFAULT_SLACK, DEFAULT_SLACK)


@st.composite
def histories(draw) -> tuple[list[int], list[int]]:
    """Documents that change one after the other, and where the snapshots of the feed end."""
    documents = draw(st.lists(st.integers(0, 3), min_size=1, max_size=30))
    ends = draw(st.sets(st.integers(1, len(documents)), max_size=8)) | {len(documents)}
    return documents, sorted(ends)


@given(histories(), st.integers(1, 5))
def test_every_removal_is_indexed_though_snapshots_hold_each_document_once(history, spread):
    """Every revision removes its document from a channel of its own, so nothing may ever be lost.

    Writers overtake each other by up to `spread` sequences, which the slack covers.
    """
    documents, ends = history
    sequences = [10 * (i + 1) + 10 * ((i % spread) if spread > 1 else 0) for i in range(len(documents))]
    last_of_document: dict[int, int] = {}
    for i, document in enumerate(documents):  # one document's sequences do rise
        sequences[i] = max(sequences[i], last_of_document.get(document, 0) + 1)
        last_of_document[document] = sequences[i]
    removals: dict[int, list[Removal]] = {}
    indexed: set[int] = set()
    known = highest = start = 0
    for end in ends:
        newest = {documents[i]: i for i in range(start, end)}
        for i in range(start, end):
            removals.setdefault(documents[i], []).append(Removal(sequences[i], f"{i}-x", False))
        for i in sorted(newest.values()):
            route = Route(f"{i}-x", 0, sequences[i], {})
            due_now = [r for r in removals[documents[i]] if removal_is_due(r, route, known, slack=10 * spread)]
            indexed.update(r.sequence for r in due_now if r.sequence <= sequences[i])
            highest = max(highest, sequences[i])
        known, start = highest, end
    assert indexed == set(sequences)
