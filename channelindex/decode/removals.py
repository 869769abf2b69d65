"""Which removals of a document have to be indexed with the revision that the feed brought. Pure.

A document's `channels` map keeps every channel it ever left, with the sequence and revision that removed it. Most of
them were indexed long ago, when that revision came by; but a bucket keeps only the newest version of a document, so
the feed may never have brought it.
"""

from channelindex.model import Removal, Route

HIGHEST_CREDIBLE = 1 << 53
"""Sequences count the writes of a database from 1. A higher one comes of damage or malice: to believe that the feed had
brought everything below it would lose every removal from then on."""


def removal_is_due(removal: Removal, route: Route, known_sequence: int, slack: int) -> bool:
    """Decide if *removal*, found in the revision *route*, must be indexed with it.

    It must where it belongs to this very revision, and where the feed cannot be relied on to have brought the revision
    it belongs to. *known_sequence* is the highest `_sync.sequence` that the vbucket's feed had brought before the
    current *snapshot* (`Checkpoint.sequence`), 0 where that is unknown. Progress within the snapshot proves nothing:
    a snapshot holds each document once, so a later revision in it may have swallowed any earlier one of the same
    snapshot, whatever sequences of other documents were seen in between.
    """
    if removal.sequence == 0 or known_sequence == 0 or removal.sequence > known_sequence - slack:
        return True
    if route.sequence:
        return removal.sequence == route.sequence
    return removal.rev == route.rev
