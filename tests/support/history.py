"""What a file of revisions means for its channels, computed from the file alone: no code of the product is used."""

import gzip
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

Line = dict[str, Any]
"""A revision: id, rev, channels, and deleted where it is."""

Membership = dict[str, set[tuple[str, str, bool, bool]]]
"""Channel -> {(document, revision, removed, deleted)}."""


def lines_of(path: Path) -> list[Line]:
    """The revisions in the file, in order."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def expected_channels(revisions: list[Line]) -> Membership:
    """Per channel the newest state of every document that is or was in it; `*` holds every document.

    A deletion leaves all channels. A document that left a channel is there as removed, with the revision that
    removed it, until it comes back.
    """
    current: dict[str, set[str]] = defaultdict(set)
    state: dict[str, dict[str, tuple[str, bool, bool]]] = defaultdict(dict)
    for line in revisions:
        doc, rev, deleted = line["id"], line["rev"], line.get("deleted", False)
        assigned = set() if deleted else set(line["channels"])
        for channel in current[doc] - assigned:
            state[channel][doc] = (rev, True, deleted)
        for channel in assigned:
            state[channel][doc] = (rev, False, False)
        current[doc] = assigned
        state["*"][doc] = (rev, False, deleted)
    return {
        channel: {(doc, *what) for doc, what in documents.items()} for channel, documents in state.items() if documents
    }
