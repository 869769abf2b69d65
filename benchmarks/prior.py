"""An index that already has millions of entries, all of them live: what a node finds that is started again."""

from collections.abc import Iterator
from contextlib import closing

from benchmarks.cases import N_VBUCKETS, VBUUID, Case
from channelindex import blocks
from channelindex.hashing import group_of
from channelindex.model import Checkpoint, IndexMeta
from channelindex.settings import IndexSettings
from channelindex.stores import open_owner, open_writer
from channelindex.stores.base import ChannelAppend

N_PARTITIONS = 64
N_FEED_WORKERS = 2
APPEND_ENTRIES = 10
"""Of each append of the fill, which comes back to a channel several times. Redis gives a string that grows room ahead;
one that was made at once would have to be copied at the node's first append, which none has that grew with time."""
BATCH_APPENDS = 500
KEY_BYTES = 13
_REV = bytes(blocks.PACKED_REV_BYTES)


def make_index(store_url: str, source_uuid: str, case: Case, n_entries: int, above: int) -> None:
    """Make the index of a bucket that is stable at seqno *above*, with *n_entries* spread over the channels of *case*.

    The groups are those of a node with N_FEED_WORKERS.
    """
    assert above >= seqno_of(n_entries), "all entries are stable"
    settings = IndexSettings("channels", store_url)
    with closing(open_owner(settings)) as owner, closing(open_writer(settings)) as writer:
        owner.create_or_check(IndexMeta(blocks.FORMAT_VERSION, N_VBUCKETS, N_PARTITIONS, source_uuid, "bench"))
        epoch = owner.next_epoch()
        owner.begin_all({partition: {} for partition in range(N_PARTITIONS)}, epoch, "bench")
        batch: list[ChannelAppend] = []
        for append in _appends(case, epoch, n_entries):
            batch.append(append)
            if len(batch) == BATCH_APPENDS:
                writer.write(batch)
                batch = []
        writer.write(batch)
        checkpoint = Checkpoint(VBUUID, above, above, above)
        width = N_VBUCKETS // N_PARTITIONS
        owner.advance(
            epoch, {at: dict.fromkeys(range(at * width, (at + 1) * width), checkpoint) for at in range(N_PARTITIONS)}
        )


def seqno_of(n_entries: int) -> int:
    """The seqno that no vbucket is above with *n_entries*; never 0, so that a feed always resumes."""
    return n_entries // N_VBUCKETS + APPEND_ENTRIES


def _appends(case: Case, epoch: int, n_entries: int) -> Iterator[ChannelAppend]:
    """Entries for each channel in turn, each time of the next vbucket; none twice in one batch."""
    n_appends = n_entries // APPEND_ENTRIES
    groups = [_group(worker) for worker in range(N_FEED_WORKERS)]
    seqnos = [0] * N_VBUCKETS
    assert case.n_channels * N_FEED_WORKERS >= BATCH_APPENDS, "a batch has one append of a channel and group"
    for number in range(n_appends):
        channel, worker = divmod(number % (case.n_channels * N_FEED_WORKERS), N_FEED_WORKERS)
        vb = (number // N_FEED_WORKERS) % (N_VBUCKETS // N_FEED_WORKERS) + worker * (N_VBUCKETS // N_FEED_WORKERS)
        yield ChannelAppend(f"ch_{channel:06}", groups[worker], epoch, _entries(vb, seqnos))


def _group(worker: int) -> str:
    share = N_PARTITIONS // N_FEED_WORKERS
    return group_of(range(worker * share, (worker + 1) * share), N_PARTITIONS)


def _entries(vb: int, seqnos: list[int]) -> bytes:
    """The next entries of *vb*, each of a document of its own: none is superseded."""
    first = seqnos[vb] + 1
    seqnos[vb] += APPEND_ENTRIES
    return b"".join(
        blocks.pack_entry_head(vb, seqno, 0, KEY_BYTES, blocks.PACKED) + b"p%04d%08d" % (vb, seqno) + _REV
        for seqno in range(first, seqnos[vb] + 1)
    )
