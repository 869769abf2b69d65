"""Makes the `_sync` that Sync Gateway writes when a revision is saved. Pure.

Source: couchbase/sync_gateway db/document.go (channels, flags, sequences) and db/revtree.go (history). Only linear
histories are kept: of a document with branches, the branches are forgotten.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from channelindex.model import DELETED
from devbucket.sync_gateway.revisions import Revision, generation

MAX_RECENT_SEQUENCES = 20
MAX_HISTORY = 50
"""Revisions that the history keeps, so that a document that changes often does not grow without end."""


def current_rev(sync: Mapping[str, Any] | None) -> str:
    """Return the id of the newest revision that `_sync` knows; "" where there is none."""
    rev = (sync or {}).get("rev", "")
    return str(rev.get("rev", "") if isinstance(rev, dict) else rev)


def is_known(sync: Mapping[str, Any] | None, revision: Revision) -> bool:
    """Return whether the document with this `_sync` has *revision* or a later one: saving it would turn back time."""
    return generation(revision.rev) <= generation(current_rev(sync))


def apply_revision(
    previous: Mapping[str, Any] | None, revision: Revision, sequence: int, now: datetime
) -> dict[str, Any]:
    """Return the `_sync` of a document whose `_sync` was *previous*, after *revision* was saved with *sequence*."""
    assert sequence > 0, "0 stands for none"
    previous = previous or {}
    assigned = () if revision.deleted else revision.channels
    sync: dict[str, Any] = {"rev": revision.rev}
    flags = previous.get("flags", 0) & ~DELETED | (DELETED if revision.deleted else 0)
    if flags:
        sync["flags"] = flags
    sync["sequence"] = sequence
    sync["recent_sequences"] = [*previous.get("recent_sequences", ()), sequence][-MAX_RECENT_SEQUENCES:]
    removal = {"seq": sequence, "rev": revision.rev} | ({"del": True} if revision.deleted else {})
    channels = _channels(previous.get("channels") or {}, removal, assigned)
    if channels:
        sync["channels"] = channels
    sync["time_saved"] = now.isoformat()
    sync["history"] = _history(previous, revision, assigned)  # last, as it is the largest part and seldom wanted
    return sync


def apply_resync(previous: Mapping[str, Any], channels: Iterable[str]) -> dict[str, Any]:
    """Return a document's `_sync` after a resync, by a new sync function, put its current revision into *channels*.

    **Sequence and revision stay**: what the document leaves by it, it leaves under a sequence that is long past.
    Source: couchbase/sync_gateway db/database.go (resync) and db/document.go `updateChannels` (read).
    """
    assigned = tuple(channels)
    removal = {"seq": previous["sequence"], "rev": current_rev(previous)}
    return {**previous, "channels": _channels(previous.get("channels") or {}, removal, assigned)}


def _channels(previous: Mapping[str, Any], removal: Mapping[str, Any], assigned: tuple[str, ...]) -> dict[str, Any]:
    """Null for each channel the document is in, and for each it ever left when that was: a return forgets it."""
    left = {name: removal if earlier is None else earlier for name, earlier in previous.items()}
    return left | dict.fromkeys(assigned)


def _history(previous: Mapping[str, Any], revision: Revision, assigned: tuple[str, ...]) -> dict[str, Any]:
    """Return the document's revisions, oldest first, each with its parent's index, and which are deletions."""
    history = previous.get("history") or {}
    revs = [*history.get("revs", ()), revision.rev]
    parents = [*history.get("parents", ()), _last_index(revs[:-1], current_rev(previous))]
    channels = [*(history.get("channels") or [None] * (len(revs) - 1)), list(assigned) or None]
    deleted = [*history.get("deleted", ()), *([len(revs) - 1] if revision.deleted else [])]
    cut = max(0, len(revs) - MAX_HISTORY)
    kept: dict[str, Any] = {
        "revs": revs[cut:],
        "parents": [max(-1, parent - cut) for parent in parents[cut:]],
        "channels": channels[cut:],
    }
    if kept_deleted := [index - cut for index in deleted if index >= cut]:
        kept["deleted"] = kept_deleted
    return kept


def _last_index(revs: list[str], rev: str) -> int:
    return len(revs) - 1 - revs[::-1].index(rev) if rev in revs else -1
