"""Cuts what a scan found into answers of a limited size, each with the token that continues after it. Pure."""

import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from channelindex import blocks
from channelindex.model import DELETED, REMOVED
from channelindex.reading import since_token
from channelindex.reading.block_walk import ReadStats
from channelindex.reading.query import Query, document_id
from channelindex.reading.scan import Found, Scan
from channelindex.reading.since_token import Delivered, Token, undelivered_upto


class Change(NamedTuple):
    """A document's newest change within the channels asked for.

    `channels` are those of the request in which the document is as of this change, in the request's order. There are
    none exactly where `removed`: the document left, and `rev` is the revision by which it left. `left` are those that
    it left by this change, where it is in none of the others.

    Where it is `withdrawn`, it is `removed` because the source took back what it said: `rev` is the revision that the
    reader may have got, and that is no more. No other of the document is in these channels.
    """

    id: str
    rev: str
    seqno: int
    vb: int
    deleted: bool
    removed: bool
    flags: int
    channels: tuple[str, ...]
    left: tuple[str, ...] = ()
    withdrawn: bool = False


class Changes(NamedTuple):
    """One answer. `since` continues after it; `pending` documents are known to follow.

    `progress` is the sum of the seqnos up to which all is delivered, out of `of`: for people and progress bars. `stats`
    count what the read behind the answer fetched; all pages of one read carry the same.
    """

    entries: tuple[Change, ...]
    since: str
    pending: int
    stats: ReadStats
    progress: int = 0
    of: int = 0


class Withdrawn(NamedTuple):
    """Lists the documents that are withdrawn: what a reader at the token `begin` gets before all else.

    `documents` are by vbucket; within one, the newest first. So a token that goes on after some of them is `begin` with
    a lower seqno in their vbuckets: what the reader had got above that, it now knows to be withdrawn.
    """

    begin: Token
    documents: Sequence[Found]


class Pager:
    """Cuts one scan into pages of a limited size."""

    def __init__(self, query: Query, scan: Scan, stats: ReadStats) -> None:
        self._query = query
        self._scan = scan
        self._stats = stats
        self._names_by_mask: dict[int, tuple[str, ...]] = {}
        self._of = sum(scan.snapshot.stable)

    def pages(
        self,
        read: Token,
        limit: int | None,
        most: int | None = None,
        part: int | None = None,
        withdrawn: Withdrawn | None = None,
    ) -> Iterator[Changes]:
        """All that was found above *read*, beginning with the vbucket whose turn it is, *limit* documents a page.

        What is *withdrawn* comes before all else.
        With *part*, each page of *limit* comes in parts of so many documents, each with its token.
        With *most*, the scan forgets what is beyond the first page and so many documents, and the pages end before it.

        Every page's token covers exactly what was delivered: vbuckets that had their turn are at the stable clock, the
        one at which the page ends is at its last document, the others are where they were.
        """
        sizes = _sizes(limit or sys.maxsize, part or sys.maxsize)
        size = next(sizes)
        stable, seqnos, horizons = self._scan.snapshot.stable, list(read.seqnos), list(read.horizons)
        self._query.narrow(self._scan, read)
        pending = self._scan.count() + (len(withdrawn.documents) if withdrawn else 0)
        kept = self._keep(read.turn_vb, sys.maxsize if most is None else most + size)
        page: list[Found] = []
        n_withdrawn = 0
        if withdrawn is not None:
            seqnos_below = list(withdrawn.begin.seqnos)
            for document in withdrawn.documents:
                if len(page) == size:
                    pending -= size
                    at = withdrawn.begin._replace(seqnos=tuple(seqnos_below), delivered=Delivered.ANYTHING)
                    yield self._answer(page, at, pending, size)
                    page, size = [], next(sizes)
                page.append(document)
                seqnos_below[_vb(document)] = document[0] - 1
            n_withdrawn = len(page)
        before: int | None = None
        for vb, upto, documents in self._turns(read, kept):
            for passed in _between(before, vb, len(stable)):
                seqnos[passed], horizons[passed] = stable[passed], stable[passed]
            before = vb
            delivered = _delivered(read, vb, upto)
            horizons[vb] = stable[vb]
            for document in documents:
                if len(page) == size:
                    pending -= size
                    assert pending > 0, "there is a document for the next page"
                    at = Token(vb, upto, read.epochs, tuple(seqnos), tuple(horizons), delivered)
                    yield self._answer(page, at, pending, n_withdrawn)
                    page, size, n_withdrawn = [], next(sizes), 0
                page.append(document)
                seqnos[vb] = document[0]
            seqnos[vb] = max(seqnos[vb], upto)
        if pending > len(page):
            return
        assert pending == len(page), "each document that was found is on one page"
        position = self._scan.snapshot.position
        is_any = read.delivered == Delivered.ANYTHING and 0 in position.seqnos  # of the others, anything is in any case
        delivered = Delivered.ANYTHING if is_any else Delivered.NOTHING
        yield self._answer(page, position._replace(delivered=delivered), 0, n_withdrawn)

    def _keep(self, first: int, most: int) -> list[int]:
        """The vbuckets with the first *most* documents, or a few more, as their turns come from *first* on.

        The scan forgets the others.
        """
        assert most > 0
        scan, n_documents = self._scan, 0
        assert 0 <= first < len(scan.since), "the turn is a vbucket's"
        kept: list[int] = []
        for vb in sorted(scan.vbuckets(), key=lambda vb: (vb < first, vb)):
            if n_documents < most:
                n_documents += scan.count_in(vb)
                kept.append(vb)
            else:
                scan.forget(vb)
        assert len(set(kept)) == len(kept), "a vbucket has one turn"
        return kept

    def _turns(self, read: Token, kept: list[int]) -> Iterator[tuple[int, int, list[Found]]]:
        """(vbucket, seqno up to which it has its turn, its documents up to there), in the order of delivery.

        The first vbucket has a second turn, the last of all, for what came while others waited. Of the others, those
        without documents are left out. The scan forgets what had its turn.
        """
        scan, stable = self._scan, self._scan.snapshot.stable
        first, of_first = read.turn_vb, scan.documents(read.turn_vb)
        upto = min(read.turn_seqno or stable[first], stable[first])
        yield first, upto, [found for found in of_first if found[0] <= upto]
        for vb in kept:
            if vb != first:
                documents = scan.documents(vb)
                scan.forget(vb)
                yield vb, stable[vb], documents
        yield first, stable[first], [found for found in of_first if found[0] > upto]

    def _answer(self, page: list[Found], continuation: Token, pending: int, n_withdrawn: int) -> Changes:
        """The answer with the documents of *page*, of which the first *n_withdrawn* are withdrawn."""
        assert pending >= 0
        assert 0 <= n_withdrawn <= len(page)
        stored = blocks.iter_entries(b"".join([found[3] for found in page]))
        entries = tuple(
            Change(
                id=document_id(entry.key),
                rev=entry.rev,
                seqno=entry.seqno,
                vb=entry.vb,
                deleted=bool(entry.flags & DELETED),
                removed=is_removed,
                flags=entry.flags,
                channels=() if is_removed else self._names(found[2]),
                left=self._names(found[2]) if is_removed else (),
                withdrawn=number < n_withdrawn,
            )
            for number, (found, entry) in enumerate(zip(page, stored, strict=True))
            for is_removed in (number < n_withdrawn or bool(entry.flags & REMOVED),)
        )
        since = since_token.encode(continuation, self._scan.snapshot.meta, self._query.asked)
        return Changes(entries, since, pending, self._stats, sum(continuation.seqnos), self._of)

    def _names(self, mask: int) -> tuple[str, ...]:
        names = self._names_by_mask.get(mask)
        if names is None:
            names = tuple(name for position, name in enumerate(self._query.channels) if mask >> position & 1)
            self._names_by_mask[mask] = names
        return names


def _vb(found: Found) -> int:
    """The vbucket of a document that was found."""
    vb: int = blocks.unpack_entry_head(found[3], 0)[0]
    return vb


def _between(before: int | None, vb: int, n_vbuckets: int) -> tuple[slice, ...]:
    """The vbuckets whose turn is between those of *before* and *vb*, around the end; all others if both are one."""
    assert 0 <= vb < n_vbuckets
    if before is None:
        return ()
    return (slice(before + 1, vb),) if before < vb else (slice(before + 1, n_vbuckets), slice(0, vb))


def _sizes(limit: int, part: int) -> Iterator[int]:
    """The sizes of parts: *limit* documents in parts of at most *part*, again and again."""
    assert limit > 0
    assert part > 0
    while True:
        left = limit
        while left > 0:
            yield min(part, left)
            left -= part


def _delivered(read: Token, vb: int, upto: int) -> Delivered:
    """The `Token.delivered` of a page that ends in the turn of *vb* up to *upto*; the read began at *read*."""
    if read.delivered == Delivered.ANYTHING:
        return Delivered.ANYTHING
    return Delivered.NOTHING_IN_TURN if upto <= undelivered_upto(read, vb) else Delivered.NOTHING
