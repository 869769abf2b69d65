"""Picks documents from the quarantine, and the clock from which the feed sends them again. Pure.

A store keeps one record for each time that a document could not be decoded, also of versions that have been replaced
since. Only a document's newest record matters.
"""

from collections.abc import Iterable, Mapping, Sequence

from channelindex.checking.rewind import Rewound
from channelindex.reading.query import document_id
from channelindex.stores.base import Quarantined


def newest_of_each(records: Iterable[Quarantined]) -> list[Quarantined]:
    """The newest of the *records* of each document, in their order, which is newest first."""
    by_key: dict[tuple[int, bytes], Quarantined] = {}
    for record in records:
        by_key.setdefault((record.vb, record.key), record)
    return list(by_key.values())


def named(documents: Iterable[Quarantined], name: str) -> list[Quarantined]:
    """The *documents* that *name* matches: a key as printed, or VB:SEQNO. A key may look like the latter."""
    return [each for each in documents if name in (document_id(each.key), f"{each.vb}:{each.seqno}")]


def clock_before(documents: Iterable[Quarantined]) -> dict[int, int]:
    """Per vbucket the seqno before the first of *documents*, from which the feed sends all of them again."""
    clock: dict[int, int] = {}
    for each in documents:
        assert each.seqno > 0, "0 is before the first document"
        clock[each.vb] = min(clock.get(each.vb, each.seqno - 1), each.seqno - 1)
    return clock


def fed_again(documents: Iterable[Quarantined], rewound: Iterable[Rewound]) -> list[Quarantined]:
    """The *documents* that the feed has to send once more.

    Not among them is what was above the stable clock: it was never more than pending, or is of a lost history.
    """
    spans = _spans(rewound)
    return [each for each in documents if each.vb in spans and spans[each.vb][0] < each.seqno <= spans[each.vb][1]]


def outdated(records: Sequence[Quarantined], rewound: Sequence[Rewound]) -> list[Quarantined]:
    """The *records* that no longer count, because their documents are fed again: these, and older ones of them."""
    highs = {vb: high for vb, (_, high) in _spans(rewound).items()}
    documents = {(each.vb, each.key) for each in fed_again(records, rewound)}
    return [each for each in records if (each.vb, each.key) in documents and each.seqno <= highs[each.vb]]


def still_undecodable(
    retried: Iterable[Quarantined], records: Iterable[Quarantined], rewound: Iterable[Rewound]
) -> list[Quarantined]:
    """The *retried* documents that are in quarantine again since the feed was taken back, according to *records*."""
    spans = _spans(rewound)
    documents = {(each.vb, each.key) for each in retried}
    return [
        each
        for each in newest_of_each(records)
        if (each.vb, each.key) in documents and each.vb in spans and each.seqno > spans[each.vb][0]
    ]


def _spans(rewound: Iterable[Rewound]) -> Mapping[int, tuple[int, int]]:
    """Per vbucket that was lowered the seqno that it was taken back to, and the one that it had."""
    return {
        vb: (after, each.before[vb]) for each in rewound for vb, after in each.after.items() if after < each.before[vb]
    }
