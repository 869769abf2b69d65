"""The documents of the throughput benchmark: orders of 700 bytes with inline `_sync`, in channels as the case says."""

import random
from collections.abc import Iterator
from typing import NamedTuple

import orjson

from channelindex.hashing import vbucket_of

N_VBUCKETS = 1024
DOCUMENT_BYTES = 700


class Case(NamedTuple):
    """How many channels there are, and in how many of them each document is."""

    name: str
    n_channels: int
    per_document: int


CASES = (Case("c100", 100, 2), Case("c1000", 1_000, 2), Case("c100000", 100_000, 2), Case("hot", 1, 1))


def documents(case: Case, count: int, n_vbuckets: int = N_VBUCKETS) -> Iterator[tuple[int, int, bytes, bytes]]:
    """(vbucket, seqno, key, value) of *count* documents; the same for the same arguments."""
    rnd = random.Random(20_170_214)
    names = [f"ch_{number:06}" for number in range(case.n_channels)]
    seqnos = [0] * n_vbuckets
    for number in range(count):
        key = b"order::%07d" % number
        vb = vbucket_of(key, n_vbuckets)
        seqnos[vb] += 1
        yield vb, seqnos[vb], key, _document(rnd, rnd.sample(names, case.per_document), 100_000 + 2 * number)


def _document(rnd: random.Random, channels: list[str], sequence: int) -> bytes:
    revs = [f"{generation}-{rnd.getrandbits(128):032x}" for generation in (1, 2)]
    body = {
        "_sync": {
            "rev": revs[1],
            "sequence": sequence,
            "recent_sequences": [sequence - 37, sequence],
            "history": {"revs": revs, "parents": [-1, 0], "channels": [channels, channels]},
            "channels": dict.fromkeys(channels),
            "time_saved": "2017-02-14T10:11:12.131415161-08:00",
        },
        "type": "order",
        "customer": f"cust-{rnd.randrange(10**6):06}",
        "total": rnd.randrange(100, 99_999) / 100,
        "note": "",
    }
    padding = DOCUMENT_BYTES - len(orjson.dumps(body))
    body["note"] = "etaoin shrdlu " * (padding // 14) + "." * (padding % 14)
    return orjson.dumps(body)
