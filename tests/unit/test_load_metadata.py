"""What `_sync` says after each revision, checked by rules and by the decoder."""

from datetime import UTC, datetime
from itertools import islice
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from channelindex.decode.sync_gateway import SyncGatewayDecoder
from channelindex.feeds.base import JSON, MUTATION
from channelindex.model import CONFLICT, DELETED, Removal, Route
from devbucket.sync_gateway.metadata import MAX_HISTORY, MAX_RECENT_SEQUENCES, apply_revision, current_rev, is_known
from devbucket.sync_gateway.revisions import Revision
from devbucket.sync_gateway.synthetic import synthetic_revisions

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def revision(generation: int, *channels: str, deleted: bool = False) -> Revision:
    return Revision(id="doc", rev=f"{generation}-{generation:04x}", channels=channels, deleted=deleted)


def save_all(*revisions: Revision, first_sequence: int = 101) -> dict[str, Any]:
    sync: dict[str, Any] | None = None
    for sequence, each in enumerate(revisions, start=first_sequence):
        sync = apply_revision(sync, each, sequence, NOW)
    assert sync is not None
    return sync


def test_first_revision():
    assert save_all(revision(1, "A", "B")) == {
        "rev": "1-0001",
        "sequence": 101,
        "recent_sequences": [101],
        "channels": {"A": None, "B": None},
        "time_saved": "2026-01-02T03:04:05+00:00",
        "history": {"revs": ["1-0001"], "parents": [-1], "channels": [["A", "B"]]},
    }


def test_history_comes_last():
    assert list(save_all(revision(1, "A"), revision(2, deleted=True)))[-1] == "history"


def test_channel_that_is_left_keeps_when_and_by_which_revision():
    sync = save_all(revision(1, "A", "B"), revision(2, "B"), revision(3, "B"))
    assert sync["channels"] == {"A": {"seq": 102, "rev": "2-0002"}, "B": None}


def test_channel_that_is_entered_again_forgets_the_removal():
    assert save_all(revision(1, "A"), revision(2), revision(3, "A"))["channels"] == {"A": None}


def test_deletion_leaves_all_channels_whatever_it_says():
    sync = save_all(revision(1, "A", "B"), revision(2, "B"), revision(3, "B", deleted=True))
    assert sync["channels"] == {"A": {"seq": 102, "rev": "2-0002"}, "B": {"seq": 103, "rev": "3-0003", "del": True}}
    assert sync["flags"] == DELETED
    assert sync["history"]["deleted"] == [2]
    assert sync["history"]["channels"] == [["A", "B"], ["B"], None]


def test_document_comes_back_after_its_deletion():
    sync = save_all(revision(1, "A"), revision(2, deleted=True), revision(3, "A"))
    assert "flags" not in sync
    assert sync["channels"] == {"A": None}
    assert sync["history"] == {
        "revs": ["1-0001", "2-0002", "3-0003"],
        "parents": [-1, 0, 1],
        "channels": [["A"], None, ["A"]],
        "deleted": [1],
    }


def test_document_in_no_channel_has_no_channels():
    assert "channels" not in save_all(revision(1))


def test_sequences_and_history_are_bounded():
    sync = save_all(*(revision(n, "A", deleted=n % 10 == 0) for n in range(1, 201)))
    assert sync["recent_sequences"] == list(range(301 - MAX_RECENT_SEQUENCES, 301))
    history = sync["history"]
    assert len(history["revs"]) == len(history["parents"]) == len(history["channels"]) == MAX_HISTORY
    assert history["revs"][-1] == sync["rev"]
    assert history["parents"] == list(range(-1, MAX_HISTORY - 1))
    assert [history["revs"][index] for index in history["deleted"]] == [
        rev for rev in history["revs"] if int(rev.partition("-")[0]) % 10 == 0
    ]


def test_previous_is_left_as_it_was():
    before = save_all(revision(1, "A", "B"))
    copy = msgspec.json.decode(msgspec.json.encode(before))
    apply_revision(before, revision(2, "C", deleted=True), 102, NOW)
    assert before == copy


def test_metadata_of_a_real_sync_gateway_is_gone_on_from():
    """The shape of version 4: revision objects, a branched history with maps instead of lists."""
    previous = {
        "rev": {"rev": "2-e1e1", "src": "x", "ver": "0x1"},
        "flags": CONFLICT | DELETED,
        "sequence": 2001,
        "history": {"revs": ["1-a1a1", "2-e1e1", "2-d1d1"], "parents": [-1, 0, 0], "channelsMap": {"2": ["east"]}},
        "channels": {"east": {"seq": 2001, "rev": {"rev": "2-e1e1"}}, "west": None},
    }
    sync = apply_revision(previous, revision(3, "north"), 2002, NOW)
    assert sync["flags"] == CONFLICT
    assert sync["history"]["parents"] == [-1, 0, 0, 1]
    assert sync["history"]["channels"] == [None, None, None, ["north"]]
    assert sync["channels"] == {
        "east": {"seq": 2001, "rev": {"rev": "2-e1e1"}},
        "west": {"seq": 2002, "rev": "3-0003"},
        "north": None,
    }


@pytest.mark.parametrize(
    ("sync", "rev"), [(None, ""), ({}, ""), ({"rev": "7-a"}, "7-a"), ({"rev": {"rev": "7-a"}}, "7-a")]
)
def test_current_revision(sync, rev):
    assert current_rev(sync) == rev


def test_revision_is_known_from_its_generation_on():
    assert not is_known(None, revision(1))
    assert not is_known({"rev": "odd"}, revision(1))
    assert not is_known({"rev": "9-z"}, revision(10))
    assert is_known({"rev": "10-z"}, revision(10))
    assert is_known({"rev": "10-z"}, revision(9))


@given(st.integers(), st.integers(1, 400))
def test_decoder_reads_what_was_written(seed, n_revisions):
    """Every route says the channels of its revision, and each channel ever left with the revision that left it."""
    decoder = SyncGatewayDecoder(star_channel=False)
    sync_by_id: dict[str, dict[str, Any]] = {}
    left_by_id: dict[str, dict[str, Removal]] = {}
    present_by_id: dict[str, set[str]] = {}
    for sequence, each in enumerate(islice(synthetic_revisions(seed, 3, 4), n_revisions), start=1):
        sync = apply_revision(sync_by_id.get(each.id), each, sequence, NOW)
        sync_by_id[each.id] = sync
        left, present = left_by_id.setdefault(each.id, {}), present_by_id.setdefault(each.id, set())
        for channel in present - set(each.channels):
            left[channel] = Removal(sequence, each.rev, each.deleted)
        for channel in each.channels:
            left.pop(channel, None)
        present_by_id[each.id] = set(each.channels)
        route = decoder.decode(MUTATION, each.id.encode(), JSON, msgspec.json.encode({"_sync": sync}))
        flags = DELETED if each.deleted else 0
        assert route == Route(each.rev, flags, sequence, left | dict.fromkeys(each.channels))
