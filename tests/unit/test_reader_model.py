"""Followers of an index that is written by owners who come, go, come back as zombies and roll back.

The oracle is the bucket itself: per vbucket a list of revisions, cut at the stable clock. Followers must be told
nothing that it does not say (as of the moment at which they read the partition records), and everything that it does.
"""

from typing import NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from channelindex.model import REMOVED
from channelindex.reading.changes_reader import ChangesReader
from tests.support.indexing import Row, SmallIndex
from tests.support.profiles import examples

VBUCKETS = range(4)
PARTITIONS = (0, 1)
WHICH = st.integers(0, 3)
MOMENTS = st.sampled_from(("view read", "all records read"))
CHANNELS = ("A", "B", "C")
CHANNEL_SETS = st.lists(st.sampled_from(CHANNELS), min_size=1, max_size=3, unique=True).map(tuple)


class Revision(NamedTuple):
    """What the bucket brings: channels maps a name to whether the document is in it (False: it left just now)."""

    vb: int
    seqno: int
    key: str
    rev: str
    channels: dict[str, bool]

    def rows(self):
        return [
            Row(channel, self.vb, self.seqno, self.key, self.rev, 0 if member else REMOVED)
            for channel, member in self.channels.items()
        ]


class Expected(NamedTuple):
    key: str
    seqno: int
    rev: str
    removed: bool
    channels: tuple[str, ...]


class Owner:
    """A feed worker and its batch writer: one epoch on some partitions. Once another began there, it is a zombie."""

    def __init__(self, index, partitions, rollback=None):
        self.partitions = partitions
        self.store = index.new_owner()
        self.epoch = index.begin(partitions, rollback, self.store)
        self.writer = index.new_writer()
        records = index.reader.partition_records()
        self.received = {
            vb: records[p].stable[vb - records[p].first_vb] for p in partitions for vb in records[p].vbuckets
        }
        self.in_flight = []
        self.written = dict(self.received)


class Follower:
    """One that asks page by page. If it keeps its reader, pages are as of when the first of them was read.

    `told_as_of` is what the bucket said then, and at each page since.
    """

    def __init__(self, store, channels, limit, keeps_reader):
        self.channels, self.limit, self.keeps_reader = channels, limit, keeps_reader
        self.store = HookedReader(store)
        self.reader = ChangesReader(self.store)
        self.since = None
        self.known = {}
        self.withdrawn = set()
        self.told_as_of = []

    def next_page(self):
        if not self.keeps_reader:
            self.reader = ChangesReader(self.store)
            self.told_as_of = []
        return self.reader.changes(self.channels, self.since, self.limit)


class HookedReader:
    """The store's reader, in which something happens once: after the stable view is read, or before the channels are.

    `late` are the partitions whose records were read after it.
    """

    def __init__(self, store):
        self._store = store
        self.expect("nothing", lambda: None)

    def expect(self, moment, hook):
        self._moment, self._hook, self.late = moment, hook, None

    def _happen(self, moment):
        if moment == self._moment and self.late is None:
            self.late = set()
            self._hook()

    def stable_view(self):
        view = self._store.stable_view()
        self._happen("view read")
        return view

    def partition_records(self, partitions=None):
        if self.late is not None:
            self.late |= set(partitions)
        return self._store.partition_records(partitions)

    def channel_states(self, channels):
        self._happen("all records read")
        return self._store.channel_states(channels)

    def __getattr__(self, name):
        return getattr(self._store, name)


class IndexMachine(RuleBasedStateMachine):
    url = "memory://"
    may_forget_dead = False
    """True where a follower need not be told what was taken back: the dead entry may be gone."""

    def __init__(self):
        super().__init__()
        self.index = SmallIndex(self.url, len(VBUCKETS), len(PARTITIONS), block_bytes=90)
        self.bucket: dict[int, list[Revision]] = {vb: [] for vb in VBUCKETS}
        self.n_revisions = self.n_rollbacks = 0
        self.owners = {}
        self.zombies = []
        self.followers = []

    def teardown(self):
        self.index.close()

    @initialize()
    def first_owner(self):
        self.take_over(PARTITIONS)
        self.followers = [
            Follower(self.index.reader, channels, limit, keeps_reader)
            for channels, limit, keeps_reader in (
                (("A",), 1, True),
                (CHANNELS, 3, False),
                (CHANNELS, 3, True),
                (("B", "C"), None, True),
            )
        ]

    # -- the bucket

    @rule(vb=st.sampled_from(VBUCKETS), number=st.integers(0, 3), channels=CHANNEL_SETS, gap=st.integers(1, 3))
    def change(self, vb, number, channels, gap):
        self.n_revisions += 1
        key = f"{vb}/{number}"
        before = next((known for known in reversed(self.bucket[vb]) if known.key == key), None)
        left = {name: False for name, member in (before.channels if before else {}).items() if member}
        high = self.bucket[vb][-1].seqno if self.bucket[vb] else 0
        members = dict.fromkeys(channels, True)
        self.bucket[vb].append(Revision(vb, high + gap, key, f"{self.n_revisions}-ab", left | members))

    @rule(vb=st.sampled_from(VBUCKETS), keep=st.floats(0, 1))
    def fail_over(self, vb, keep):
        """The vbucket loses its newest revisions; its owner rolls back."""
        lost = self.bucket[vb][int(keep * len(self.bucket[vb])) :]
        if lost:
            self.n_rollbacks += 1
            self.bucket[vb] = self.bucket[vb][: -len(lost)]
            remaining = self.bucket[vb][-1].seqno if self.bucket[vb] else 0
            self.take_over(self.owner_of(vb).partitions, {vb: remaining})

    # -- owners

    def owner_of(self, vb):
        return self.owners[vb // self.index.meta.partition_width]

    @rule(partitions=st.sampled_from([(0,), (1,), (0, 1)]))
    def take_over(self, partitions, rollback=None):
        retired = {id(owner): owner for p, owner in self.owners.items() if p in partitions}
        self.zombies = [*self.zombies, *retired.values()][-3:]
        owner = Owner(self.index, partitions, rollback)
        for partition in partitions:
            self.owners[partition] = owner

    @rule(vb=st.sampled_from(VBUCKETS), n=st.integers(1, 4))
    def receive(self, vb, n):
        owner = self.owner_of(vb)
        brought = [revision for revision in self.bucket[vb] if revision.seqno > owner.received[vb]][:n]
        if brought:
            owner.in_flight += brought
            owner.received[vb] = brought[-1].seqno

    def flush(self, owner, n):
        batch, owner.in_flight = owner.in_flight[:n], owner.in_flight[n:]
        rows = [row for revision in batch for row in revision.rows()]
        self.index.write(owner.epoch, rows, owner.partitions, owner.writer)
        for revision in batch:
            owner.written[revision.vb] = revision.seqno
        return batch

    @rule(vb=st.sampled_from(VBUCKETS), n=st.integers(1, 6), twice=st.booleans())
    def write(self, vb, n, twice):
        owner = self.owner_of(vb)
        batch = self.flush(owner, n)
        if twice:
            rows = [row for revision in batch for row in revision.rows()]
            self.index.write(owner.epoch, rows, owner.partitions, owner.writer)

    @rule(vb=st.sampled_from(VBUCKETS))
    def advance(self, vb):
        owner = self.owner_of(vb)
        moved = {v: seqno for v, seqno in owner.written.items() if self.owner_of(v) is owner}
        self.index.advance(owner.epoch, moved)

    @rule(vb=st.sampled_from(VBUCKETS))
    def catch_up(self, vb):
        self.receive(vb, 100)
        self.flush(self.owner_of(vb), 100)
        self.advance(vb)

    @rule(which=st.integers(0, 2), n=st.integers(1, 6))
    def write_as_zombie(self, which, n):
        if which < len(self.zombies):
            self.flush(self.zombies[which], n)

    # -- followers

    @rule(channels=CHANNEL_SETS, limit=st.sampled_from([None, 1, 2, 5]), keeps_reader=st.booleans())
    def join(self, channels, limit, keeps_reader):
        if len(self.followers) < 7:
            self.followers.append(Follower(self.index.reader, channels, limit, keeps_reader))

    @rule(which=st.integers(0, 6))
    def follow(self, which):
        if which < len(self.followers):
            self.read_one_page(self.followers[which])

    @rule(
        which=WHICH,
        vb=st.sampled_from(VBUCKETS),
        keep=st.floats(0, 1),
        number=st.integers(0, 3),
        moment=MOMENTS,
    )
    def follow_while_it_rolls_back(self, which, vb, keep, number, moment):
        def hook():
            self.fail_over(vb, keep)
            self.change(vb, number, ("A", "B"), 1)
            self.catch_up(vb)
            self.write_as_zombie(0, 6)

        self.read_one_page(self.followers[which], hook, moment, vb)

    @rule(which=WHICH, vb=st.sampled_from(VBUCKETS), moment=MOMENTS)
    def follow_while_it_is_written(self, which, vb, moment):
        def hook():
            self.take_over((vb // self.index.meta.partition_width,))
            self.catch_up(vb)

        self.read_one_page(self.followers[which], hook, moment, vb)

    def read_one_page(self, follower, hook=lambda: None, moment="nothing", vb=0):
        """*hook* changes the partition of *vb* alone, at *moment*."""
        expected, n_rollbacks = self.expected(follower.channels), self.n_rollbacks
        follower.store.expect(moment, hook)
        page = follower.next_page()
        if follower.store.late and vb // self.index.meta.partition_width in follower.store.late:
            expected = self.expected(follower.channels)
        follower.told_as_of.append(expected)
        rollbacks = n_rollbacks, self.n_rollbacks
        self.check_withdrawn(follower, [entry for entry in page.entries if entry.withdrawn], rollbacks)
        told = [Expected(e.id, e.seqno, e.rev, e.removed, e.channels) for e in page.entries if not e.withdrawn]
        assert len(told) <= (follower.limit or len(told))
        assert len({entry.key for entry in told}) == len(told)
        for entry in told:
            assert entry in [then.get(entry.key) for then in follower.told_as_of], "told what the bucket did not say"
        follower.known.update({entry.key: entry for entry in told})
        follower.since = page.since
        if page.pending == 0:
            for key in expected:
                assert follower.known.get(key) in [then.get(key) for then in follower.told_as_of], (
                    "all was told, it says"
                )
            self.check_known(follower)
            follower.told_as_of.clear()
        return page

    def check_known(self, follower):
        """A follower that was told all holds nothing that was taken back.

        But for one that reads page by page: what was to be told again of a document, and was taken back, too, before
        the page that would have, says nothing of what was told before.
        """
        for key, known in list(follower.known.items()):
            if not known.removed and known not in [then.get(key) for then in follower.told_as_of]:
                assert self.may_forget_dead or follower.limit is not None, "it was taken back"
                del follower.known[key]

    def check_withdrawn(self, follower, entries, rollbacks):
        """Each is told once for a rollback, and only while the bucket says nothing of it."""
        for entry in entries:
            assert (entry.removed, entry.channels) == (True, ())
            assert set(entry.left) <= set(follower.channels)
            assert any(entry.id not in then for then in follower.told_as_of), "it is there"
            once = entry.id, entry.rev, rollbacks
            assert once not in follower.withdrawn, "told twice"
            follower.withdrawn.add(once)
            follower.known.pop(entry.id, None)

    def expected(self, channels):
        """By key: the newest that the bucket, as far as it is stable, says of each document in *channels*."""
        newest = {}
        records = self.index.reader.partition_records()
        stable = {vb: seqno for record in records for vb, seqno in zip(record.vbuckets, record.stable, strict=True)}
        for vb in VBUCKETS:
            for revision in self.bucket[vb]:
                seen = {name: member for name, member in revision.channels.items() if name in channels}
                if seen and revision.seqno <= stable[vb]:
                    members = tuple(name for name in channels if seen.get(name))
                    newest[revision.key] = Expected(revision.key, revision.seqno, revision.rev, not members, members)
        return newest

    @invariant()
    def records_agree_with_themselves(self):
        for record in self.index.reader.partition_records():
            record.check()

    @invariant()
    def a_new_reader_is_told_exactly_the_bucket(self):
        for channels in (("A",), ("B", "C")):
            told = ChangesReader(self.index.reader).changes(channels).entries
            facts = [Expected(e.id, e.seqno, e.rev, e.removed, e.channels) for e in told]
            assert {entry.key: entry for entry in facts} == self.expected(channels)
            assert [(e.vb, e.seqno) for e in told] == sorted((e.vb, e.seqno) for e in told)

    def drain(self):
        for vb in VBUCKETS:
            self.catch_up(vb)
        for follower in self.followers:
            n_pages = 0
            while (page := self.read_one_page(follower)).pending or page.entries:
                n_pages += 1
                assert n_pages < 200
            expected = self.expected(follower.channels)
            assert {key: follower.known.get(key) for key in expected} == expected, "all is told at last"
            assert ChangesReader(self.index.reader).changes(follower.channels, follower.since).entries == ()

    @rule()
    def everything_settles(self):
        self.drain()


@pytest.mark.hypothesis
def test_followers_receive_what_the_bucket_says_in_memory():
    run_state_machine_as_test(
        IndexMachine,
        settings=settings(stateful_step_count=40),
    )


@pytest.mark.hypothesis
def test_followers_receive_what_the_bucket_says_in_redis(redis_url):
    class InRedis(IndexMachine):
        url = redis_url

    run_state_machine_as_test(
        InRedis,
        settings=settings(
            max_examples=examples(0.1),
            stateful_step_count=30,
        ),
    )
