"""verify finds each kind of difference, and takes nothing for one that is none."""

import os
from dataclasses import asdict

import orjson
import pytest

from channelindex.checking import verify as verifying
from channelindex.checking.verify import WrongEntry, verify
from channelindex.decode.base import Undecodable
from channelindex.errors import SourceUnavailable
from channelindex.feeds.base import ADVANCED, DELETION, HISTORY, MUTATION, ROLLBACK, SNAPSHOT
from channelindex.model import CONFLICT, DELETED, ORIGIN, REMOVED, Principal, Removal, Route
from tests.support.indexing import Row, SmallIndex
from workers.cli.verify import print_report


class TableDecoder:
    """Decodes a value that is a number into the route (or whatever) of that number."""

    def __init__(self):
        self.meanings = []

    def encode(self, meaning) -> bytes:
        self.meanings.append(meaning)
        return b"%d" % (len(self.meanings) - 1)

    def decode(self, kind, key, datatype, value):
        meaning = self.meanings[int(value)]
        if isinstance(meaning, Exception):
            raise meaning
        return meaning


class RecordedFeed:
    """Brings batches of events, one per read, then ends; unless it is *silent*."""

    def __init__(self, batches, silent=False):
        self._batches, self._silent = list(batches), silent
        self._fd = os.eventfd(1)
        self.started = None
        self.acknowledged = 0

    def start(self, checkpoints):
        self.started = checkpoints

    def fileno(self):
        return self._fd

    def read(self, max_bytes):
        return self._batches.pop(0) if self._batches else []

    def acknowledge(self):
        self.acknowledged += 1

    def tick(self, now):
        return now + 0.01

    def high_seqnos(self):
        return {}

    def connected(self):
        return True

    def ended(self):
        return not self._batches and not self._silent

    def close(self):
        os.close(self._fd)


class Site:
    """A bucket and its index. What is `put` into the bucket is indexed too, except where a test says otherwise."""

    def __init__(self):
        self.index = SmallIndex()
        self.epoch = self.index.begin()
        self.decoder = TableDecoder()
        self.events = []
        self.highs = {}
        self.feed = None

    def put(self, vb, seqno, key, meaning, kind=MUTATION):
        self.events.append((kind, vb, seqno, key.encode(), 1, self.decoder.encode(meaning)))
        self.highs[vb] = seqno

    def route(self, rev, *members, flags=0, **removals):
        return Route(rev, flags, 0, {**dict.fromkeys(members), **removals})

    def entries(self, *rows):
        self.index.write(self.epoch, rows)

    def stable(self, seqnos=None):
        self.index.advance(self.epoch, self.highs if seqnos is None else seqnos)

    def verify(self, channels=None, high_seqnos=None, **options):
        self.feed = RecordedFeed([self.events[:2], self.events[2:]], options.pop("silent", False))
        options = {"stable_timeout_s": 0.05, **options}
        try:
            return verify(
                self.index.reader, self.feed, self.decoder, high_seqnos or (lambda: self.highs), channels, **options
            )
        finally:
            self.feed.close()

    def close(self):
        self.index.close()


@pytest.fixture
def site():
    made = Site()
    yield made
    made.close()


def found(report):
    """What the report found, by kind, and that its counts say the same."""
    kinds = [difference.kind for difference in report.details]
    for kind in ("missing", "extra", "different", "undecodable"):
        assert getattr(report, kind) == kinds.count(kind)
    return sorted((difference.kind, difference.channel, difference.id) for difference in report.details)


def healthy(site):
    """A bucket with a member, a removal, a tombstone and a document that was deduplicated; all of it indexed."""
    site.put(0, 1, "in", site.route("1-aa", "A", "*"))
    site.put(0, 2, "moved", site.route("2-bb", "B", "*", flags=CONFLICT, A=Removal(0, "2-bb", False)))
    site.put(1, 3, "gone", site.route("3-cc", "*", flags=DELETED, A=Removal(0, "3-cc", True)), DELETION)
    site.put(1, 5, "late", site.route("4-dd", "B", "*", A=Removal(0, "3-dd", False)))
    site.entries(Row("A", 0, 1, "in"), Row("*", 0, 1, "in"))
    site.entries(Row("A", 0, 2, "moved", "2-bb", REMOVED), Row("B", 0, 2, "moved", "2-bb", CONFLICT))
    site.entries(Row("*", 0, 2, "moved", "2-bb", CONFLICT), Row("*", 1, 3, "gone", "3-cc", DELETED))
    site.entries(Row("A", 1, 3, "gone", "3-cc", REMOVED | DELETED))
    site.entries(
        Row("A", 1, 4, "late", "3-dd", REMOVED), Row("B", 1, 5, "late", "4-dd"), Row("*", 1, 5, "late", "4-dd")
    )
    site.stable()


# -- no difference


def test_an_index_that_is_as_the_bucket_says_has_no_difference(site):
    healthy(site)
    report = site.verify()
    assert report.ok
    assert (report.documents, report.channels, report.entries) == (4, 3, 10)
    assert asdict(report) == {
        **dict.fromkeys(("missing", "extra", "different", "undecodable", "in_flux", "undecoded", "foreign"), 0),
        **dict.fromkeys(("forgotten", "behind", "ahead"), 0),
        "documents": 4,
        "channels": 3,
        "entries": 10,
        "empty": (),
        "details": (),
    }
    assert site.feed.started == dict.fromkeys(range(4), ORIGIN)
    assert site.feed.acknowledged


def test_an_empty_bucket_and_an_empty_index_agree(site):
    report = site.verify()
    assert report.ok
    assert (report.documents, report.channels, report.entries) == (0, 0, 0)


def test_only_the_newest_version_counts(site):
    site.put(0, 1, "doc", site.route("1-aa", "A"))
    site.events.append((SNAPSHOT, 0, 2, 9))
    site.events.append((HISTORY, 0, ((1, 0),)))
    site.put(0, 4, "doc", site.route("2-bb", "A"))
    site.entries(Row("A", 0, 1, "doc"), Row("A", 0, 4, "doc", "2-bb"))
    site.stable()
    assert site.verify().ok


def test_removals_and_tombstones_of_documents_that_the_bucket_purged_are_not_extra(site):
    site.entries(Row("A", 0, 1, "purged", "2-aa", REMOVED | DELETED), Row("*", 0, 1, "purged", "2-aa", DELETED))
    site.events.append((ADVANCED, 0, 1))
    site.highs[0] = 1
    site.stable()
    report = site.verify()
    assert report.ok
    assert (report.entries, report.in_flux) == (2, 0)


def test_a_removal_of_which_the_document_says_nothing_any_more_is_not_extra(site):
    site.put(0, 4, "doc", site.route("1-new", "B"))
    site.entries(Row("A", 0, 1, "doc", "2-old", REMOVED), Row("B", 0, 4, "doc", "1-new"))
    site.stable()
    assert site.verify().ok


@pytest.mark.parametrize("meaning", [None, Principal("doc", "user", "", "doc")])
def test_a_document_that_means_nothing_is_not_compared(site, meaning):
    site.put(0, 1, "doc", site.route("1-aa", "A"))
    site.put(0, 2, "doc", meaning)
    site.entries(Row("A", 0, 1, "doc"))
    site.stable()
    report = site.verify()
    assert report.ok
    assert (report.undecoded, report.foreign) == (1, 1)


@pytest.mark.parametrize(
    "meaning",
    [
        Undecodable("nonsense"),
        KeyError("a decoder with a bug"),
        Route("x" * 300, 0, 0, {"A": None}),
        Route("1-aa", 0, 0, {"A": None, "B": Removal(0, "x" * 300, False)}),
    ],
)
def test_an_index_that_lacks_what_is_in_quarantine_is_not_ok(site, meaning):
    """Its documents are in none of the channels that are compared: an index of nothing would be ok otherwise."""
    site.put(0, 1, "doc", site.route("1-aa", "A"))
    site.put(0, 2, "doc", meaning)
    site.entries(Row("A", 0, 1, "doc"))
    site.stable()
    for channels in (None, ["A"], ["another"]):
        report = site.verify(channels)
        assert not report.ok
        assert found(report) == [("undecodable", "", "doc")]
    assert site.verify().undecoded == 1


def test_a_document_that_was_saved_again_since_it_could_not_be_decoded_is_no_difference(site):
    site.put(0, 1, "doc", Undecodable("nonsense"))
    site.put(0, 2, "doc", site.route("1-aa", "A"))
    site.entries(Row("A", 0, 2, "doc"))
    site.stable()
    assert site.verify().ok


def test_a_key_that_no_entry_can_hold_is_lacking(site):
    site.put(0, 1, "k" * 256, site.route("1-aa", "A"))
    site.stable()
    assert [kind for kind, *_ in found(site.verify())] == ["undecodable"]


# -- differences


def test_missing_entries_are_found(site):
    healthy(site)
    site.put(2, 1, "unindexed", site.route("1-aa", "A", "new", B=Removal(0, "1-aa", False)))
    site.stable()
    report = site.verify()
    assert found(report) == [
        ("missing", "A", "unindexed"),
        ("missing", "B", "unindexed"),
        ("missing", "new", "unindexed"),
    ]
    assert not report.ok
    assert report.channels == 4
    assert report.details[0] == WrongEntry(
        "missing", "A", "unindexed", 2, "in it with revision 1-aa, seqno 1", "no entry"
    )


def test_entries_of_no_document_and_of_channels_that_a_document_is_not_in_are_extra(site):
    healthy(site)
    site.put(0, 9, "in", site.route("9-ff", "*"))
    site.entries(Row("*", 0, 9, "in", "9-ff"), Row("B", 0, 8, "phantom"), Row("nowhere", 1, 5, "late", "4-dd"))
    site.stable()
    report = site.verify()
    assert found(report) == [("extra", "A", "in"), ("extra", "B", "phantom"), ("extra", "nowhere", "late")]
    assert report.details[0].expected == "not in the channel"
    assert report.details[1].expected == "no such document"
    assert report.details[1].found == "in it with revision 1-aa, seqno 8"


@pytest.mark.parametrize(
    "row",
    [
        Row("A", 0, 5, "doc", "2-other"),
        Row("A", 0, 4, "doc", "2-bb"),
        Row("A", 0, 5, "doc", "2-bb", DELETED),
        Row("A", 0, 5, "doc", "2-bb", REMOVED),
    ],
)
def test_an_entry_that_is_not_as_the_document_says_is_different(site, row):
    site.put(0, 5, "doc", site.route("2-bb", "A"))
    site.entries(row)
    site.stable()
    assert found(site.verify()) == [("different", "A", "doc")]


@pytest.mark.parametrize(
    "row",
    [
        Row("A", 0, 5, "doc", "2-other", REMOVED | DELETED),
        Row("A", 0, 5, "doc", "2-bb", REMOVED),
        Row("A", 0, 5, "doc", "2-bb", DELETED),
        Row("A", 0, 6, "doc", "2-bb", REMOVED | DELETED),
    ],
)
def test_a_removal_that_is_not_as_the_document_says_is_different(site, row):
    site.put(0, 5, "doc", site.route("2-bb", flags=DELETED, A=Removal(0, "2-bb", True)))
    site.put(0, 6, "other", None)
    site.entries(row)
    site.stable()
    report = site.verify()
    assert found(report) == [("different", "A", "doc")]
    assert report.details[0].expected == "removed by revision 2-bb, deleted, seqno 5"


def test_a_seqno_that_the_bucket_never_gave_a_document_is_different_not_in_flux(site):
    site.put(0, 5, "doc", site.route("2-bb", "A"))
    site.put(0, 9, "other", site.route("1-aa", "A"))
    site.entries(Row("A", 0, 7, "doc", "3-phantom"), Row("A", 0, 9, "other"))
    site.stable()
    assert found(site.verify()) == [("different", "A", "doc")]


def test_an_index_that_is_ahead_of_the_bucket_is_reported_so(site):
    site.put(0, 5, "doc", site.route("2-bb", "A"))
    site.entries(Row("A", 0, 5, "doc", "2-bb"), Row("A", 0, 7, "lost"))
    site.stable({0: 8})
    report = site.verify()
    assert report.ahead == 1
    assert found(report) == [("extra", "A", "lost")]
    assert not report.ok


def test_only_the_channels_asked_for_are_compared(site):
    healthy(site)
    site.put(2, 1, "unindexed", site.route("1-aa", "A", "B"))
    site.stable()
    report = site.verify(["A", "unheard of"])
    assert found(report) == [("missing", "A", "unindexed")]
    assert report.channels == 2


def test_a_channel_that_was_asked_for_and_is_nowhere_is_named(site, capsys):
    healthy(site)
    assert site.verify().empty == ()
    report = site.verify(["A", "mistyped"])
    assert report.ok
    assert report.empty == ("mistyped",)
    print_report(report)
    assert "channel mistyped: neither the bucket nor the index has anything of it" in capsys.readouterr().err


def test_details_are_bounded_and_json(site, monkeypatch):
    monkeypatch.setattr(verifying, "MAX_DETAILS", 3)
    for n in range(1, 11):
        site.put(0, n, f"doc{n}", site.route("1-aa", "A"))
    site.stable()
    report = site.verify()
    assert (report.missing, len(report.details)) == (10, 3)
    assert orjson.loads(orjson.dumps(report))["details"][2]["id"] == "doc3"


# -- a bucket that goes on meanwhile


def test_documents_that_changed_since_the_feed_brought_them_are_in_flux(site):
    site.put(0, 5, "doc", site.route("2-bb", "A"))
    site.put(0, 6, "stays", site.route("1-aa", "A"))
    site.entries(Row("A", 0, 5, "doc", "2-bb"), Row("A", 0, 6, "stays"))
    site.entries(Row("A", 0, 8, "doc", "3-cc"), Row("B", 0, 8, "doc", "3-cc"), Row("A", 0, 9, "new"))
    site.stable({0: 9})
    report = site.verify(high_seqnos=lambda: {0: 9})
    assert report.ok
    assert (report.entries, report.in_flux) == (4, 3)


def test_it_waits_until_the_index_has_caught_up(site):
    healthy(site)
    site.put(0, 9, "news", site.route("1-aa", "A"))

    def high_seqnos():
        return site.highs

    def wait_stable(counter, timeout_s):
        assert 0 < timeout_s <= 20
        site.entries(Row("A", 0, 9, "news"))
        site.stable()
        return counter + 1

    site.index.reader.wait_stable = wait_stable
    report = site.verify(stable_timeout_s=20)
    assert report.ok
    assert (report.behind, report.entries) == (0, 11)


def test_an_index_that_stays_behind_is_reported_so_and_judged_as_far_as_it_is(site):
    healthy(site)
    site.put(0, 9, "news", site.route("1-aa", "A"))
    site.put(0, 10, "in", site.route("2-bb", "B"))
    report = site.verify()
    assert (report.behind, report.missing, report.extra, report.different) == (1, 0, 0, 0)
    assert report.in_flux == 4, "news in A, in in B, and what the index still has of it in A and *"
    assert not report.ok


def test_an_entry_whose_document_the_feed_skipped_is_not_extra_while_the_index_is_behind(site):
    site.put(0, 6, "other", site.route("1-aa", "A"))
    site.entries(Row("A", 0, 5, "doc"), Row("A", 0, 6, "other"))
    site.stable()
    report = site.verify(high_seqnos=lambda: {0: 11})
    assert (report.extra, report.in_flux, report.behind) == (0, 1, 1)


def test_a_rollback_of_the_source_ends_it(site):
    healthy(site)
    site.events.append((ROLLBACK, 1, ORIGIN))
    with pytest.raises(SourceUnavailable, match="vbucket 1"):
        site.verify()


def test_a_rollback_of_the_index_ends_it(site):
    healthy(site)
    channels = site.index.reader.channels

    def roll_back_meanwhile():
        site.index.begin(rollback={1: 3})
        return channels()

    site.index.reader.channels = roll_back_meanwhile
    with pytest.raises(SourceUnavailable, match="rolled back"):
        site.verify()


def test_a_feed_that_brings_nothing_is_given_up(site):
    with pytest.raises(SourceUnavailable, match="sent nothing"):
        site.verify(silent=True, silence_timeout_s=0.05)
