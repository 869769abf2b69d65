"""The documents of the benchmarks: orders with `_sync`, as large and in as many channels as the case says."""

import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import orjson

from channelindex.hashing import vbucket_of
from channelindex.mcbp import join_xattrs
from devbucket.bucket import Bucket

N_VBUCKETS = 1024
VBUUID = 0xB0B
"""The history of every vbucket: whoever makes an index of a bucket knows where its feed goes on."""
SHORT_BYTES = 600
"""Documents below have a `_sync` without history: all of it would not fit."""


class Case(NamedTuple):
    """How many channels there are, in how many of them each document is, how large it is, and where its `_sync` is."""

    name: str
    n_channels: int
    per_document: int
    document_bytes: int = 700
    in_xattr: bool = False


CASES = (Case("c100", 100, 2), Case("c1000", 1_000, 2), Case("c100000", 100_000, 2), Case("hot", 1, 1))


def load(bucket: Bucket, case: Case, count: int, n_vbuckets: int = N_VBUCKETS, above: int = 0) -> None:
    """Put *count* documents of *case* into *bucket*, as if they had long been there, with seqnos above *above*."""
    for vbucket in bucket.vbuckets:
        vbucket.high_seqno = above  # also where no document follows: who resumes from there need not roll back
        vbucket.failover_log.entries[0] = (VBUUID, 0)
    bucket.bulk_load(documents(case, count, n_vbuckets, above), with_xattrs=case.in_xattr)


def documents(
    case: Case, count: int, n_vbuckets: int = N_VBUCKETS, above: int = 0
) -> Iterator[tuple[int, int, bytes, bytes]]:
    """(vbucket, seqno, key, value) of *count* documents; the same for the same arguments."""
    rnd = random.Random(20_170_214)
    names = [f"ch_{number:06}" for number in range(case.n_channels)]
    seqnos = [above] * n_vbuckets
    for number in range(count):
        key = b"order::%07d" % number
        vb = vbucket_of(key, n_vbuckets)
        seqnos[vb] += 1
        yield vb, seqnos[vb], key, _document(rnd, case, rnd.sample(names, case.per_document), 100_000 + 2 * number)


def _document(rnd: random.Random, case: Case, channels: list[str], sequence: int) -> bytes:
    sync = _sync(rnd, channels, sequence)
    body: dict[str, Any] = {
        "type": "order",
        "customer": f"cust-{rnd.randrange(10**6):06}",
        "total": rnd.randrange(100, 99_999) / 100,
        "note": "",
    }
    if case.document_bytes < SHORT_BYTES:
        sync, body = {name: sync[name] for name in ("rev", "sequence", "channels")}, {"note": ""}
    padding = max(0, case.document_bytes - len(orjson.dumps({"_sync": sync, **body})))
    body["note"] = "etaoin shrdlu " * (padding // 14) + "." * (padding % 14)
    if case.in_xattr:
        return join_xattrs([("_sync", orjson.dumps(sync))], orjson.dumps(body))
    return orjson.dumps({"_sync": sync, **body})


def _sync(rnd: random.Random, channels: list[str], sequence: int) -> dict[str, Any]:
    revs = [f"{generation}-{rnd.getrandbits(128):032x}" for generation in (1, 2)]
    return {
        "rev": revs[1],
        "sequence": sequence,
        "recent_sequences": [sequence - 37, sequence],
        "history": {"revs": revs, "parents": [-1, 0], "channels": [channels, channels]},
        "channels": dict.fromkeys(channels),
        "time_saved": "2017-02-14T10:11:12.131415161-08:00",
    }
