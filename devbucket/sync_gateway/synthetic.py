"""Revisions without end for demos and tests: documents are made, change, move, vanish and come back."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from devbucket.sync_gateway.revisions import Revision

_DELETE = 0.06
_MOVE = 0.25
"""Chances that a change of a document is a deletion, or a move to other channels. The rest only change the body."""


@dataclass
class _SyntheticDocument:
    generation: int = 0
    channels: tuple[str, ...] = ()
    deleted: bool = False


def synthetic_revisions(
    seed: int, n_documents: int = 1000, n_channels: int = 20, max_channels: int = 3
) -> Iterator[Revision]:
    """Return an endless stream of revisions, the same for the same arguments.

    Documents "doc-000000" and up are each in none to *max_channels* of the channels "ch-000" and up. What is deleted
    comes back when it is next chosen.
    """
    assert n_channels >= 0
    assert n_documents > 0
    rnd = random.Random(seed)
    channels = [f"ch-{number:03}" for number in range(n_channels)]
    documents = [_SyntheticDocument() for _ in range(n_documents)]
    while True:
        index = rnd.randrange(n_documents)
        document = documents[index]
        _change(document, rnd, channels, max_channels)
        yield Revision(
            id=f"doc-{index:06}",
            rev=f"{document.generation}-{rnd.getrandbits(128):032x}",
            channels=document.channels,
            body={"type": "synthetic", "value": rnd.randrange(1_000_000)},
            deleted=document.deleted,
        )


def _change(document: _SyntheticDocument, rnd: random.Random, channels: Sequence[str], max_channels: int) -> None:
    absent = document.generation == 0 or document.deleted
    chance = rnd.random()
    document.generation += 1
    assert not (document.deleted and document.channels), "a tombstone is in no channel"
    document.deleted = not absent and chance < _DELETE
    if document.deleted:
        document.channels = ()
    elif absent or chance < _DELETE + _MOVE:
        count = rnd.randint(0, min(max_channels, len(channels)))
        document.channels = tuple(sorted(rnd.sample(channels, count)))
