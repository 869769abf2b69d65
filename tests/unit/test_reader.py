"""What a reader is told, and what it costs."""

import pytest

from channelindex.model import DELETED, HIDDEN, REMOVED
from channelindex.reading.changes_reader import ChangesReader
from tests.support.indexing import Proxy, Row, filled, told

# -- what is told


def test_an_index_without_entries_has_no_changes(reader):
    changes = reader.changes(["A", "B"])
    assert (changes.entries, changes.pending, changes.stats) == ((), 0, (0, 0))
    assert reader.changes(["A", "B"], changes.since).entries == reader.changes([]).entries == ()


def test_only_what_is_stable_is_sent_and_the_rest_once_it_is(index, reader):
    epoch = index.begin()
    index.write(epoch, [Row("A", 0, 1, "one"), Row("A", 0, 2, "two"), Row("A", 3, 9, "three")])
    index.advance(epoch, {0: 1})
    first = reader.changes(["A"])
    assert told(first) == [("one", 1, "1-aa", False)]
    index.advance(epoch, {0: 2, 3: 9})
    assert told(reader.changes(["A"], first.since)) == [("two", 2, "1-aa", False), ("three", 9, "1-aa", False)]


def test_a_document_is_sent_once_with_its_newest_revision(index, reader):
    epoch = index.begin()
    index.write(epoch, [Row("A", 0, 1, "doc", "1-aa"), Row("A", 0, 2, "other"), Row("A", 0, 3, "doc", "2-bb", DELETED)])
    index.advance(epoch, {0: 3})
    changes = reader.changes(["A"])
    assert told(changes) == [("other", 2, "1-aa", False), ("doc", 3, "2-bb", False)]
    assert [entry.deleted for entry in changes.entries] == [False, True]


def test_membership_counts_more_than_removal_at_the_same_seqno(index, reader):
    epoch = index.begin()
    index.write(epoch, [Row("A", 0, 7, "doc", "2-bb", REMOVED), Row("B", 0, 7, "doc", "3-cc", HIDDEN)])
    index.advance(epoch, {0: 7})
    for order in (["A", "B"], ["B", "A"]):
        (entry,) = reader.changes(order).entries
        assert (entry.rev, entry.removed, entry.flags, entry.channels) == ("3-cc", False, HIDDEN, ("B",))
    (entry,) = reader.changes(["A"]).entries
    assert (entry.rev, entry.removed, entry.channels) == ("2-bb", True, ())


def test_the_channels_of_an_entry_are_those_of_the_request_in_its_order(index, reader):
    epoch = index.begin()
    index.write(epoch, [Row(channel, 0, 7, "doc") for channel in "ABCD"])
    index.advance(epoch, {0: 7})
    (entry,) = reader.changes(["D", "A", "D", "C", "absent"]).entries
    assert entry.channels == ("D", "A", "C")


def test_a_later_membership_elsewhere_replaces_a_removal(index, reader):
    epoch = index.begin()
    index.write(epoch, [Row("A", 0, 7, "doc", "2-bb", REMOVED), Row("B", 0, 9, "doc", "3-cc")])
    index.advance(epoch, {0: 9})
    assert told(reader.changes(["A", "B"])) == [("doc", 9, "3-cc", False)]


@pytest.mark.parametrize("revs", [("9-ff", "10-aa"), ("10-aa", "9-ff")])
def test_of_two_removals_at_one_seqno_the_later_revision_is_sent(index, reader, revs):
    epoch = index.begin()
    index.write(epoch, [Row("A", 0, 7, "doc", revs[0], REMOVED), Row("B", 0, 7, "doc", revs[1], REMOVED | DELETED)])
    index.advance(epoch, {0: 7})
    assert told(reader.changes(["A", "B"])) == [("doc", 7, "10-aa", True)]


def test_entries_written_twice_are_sent_once(index, reader):
    epoch = index.begin()
    rows = [Row("A", 0, 7, "doc"), Row("A", 1, 3, "other")]
    index.write(epoch, rows)
    index.write(epoch, rows, writer=index.new_writer())
    later = index.begin()
    index.write(later, rows, writer=index.new_writer())
    index.advance(later, {0: 7, 1: 3})
    assert told(reader.changes(["A"])) == [("doc", 7, "1-aa", False), ("other", 3, "1-aa", False)]


def test_an_unusual_revision_and_key_are_sent_as_they_are(index, reader):
    epoch = index.begin()
    index.write(epoch, [Row("A", 0, 7, "dök:ü/1", "not a revision"), Row("A", 0, 8, "empty", "")])
    index.advance(epoch, {0: 8})
    assert told(reader.changes(["A"])) == [("dök:ü/1", 7, "not a revision", False), ("empty", 8, "", False)]


# -- the work


def test_only_new_blocks_are_read(index, reader):
    epoch = filled(index)
    whole = reader.changes(["A"])
    n_blocks = index.reader.channel_states(["A"])[0].active_by_group.popitem()[1] + 1
    assert whole.stats.n_blocks == n_blocks > 5
    assert reader.changes(["A"], whole.since).stats.n_blocks == 0
    index.write(epoch, [Row("B", 0, 11, "elsewhere")])
    index.advance(epoch, {0: 11})
    assert reader.changes(["A"], whole.since).stats.n_blocks == 0
    index.write(epoch, [Row("A", 0, 12, "news")])
    index.advance(epoch, {0: 12})
    assert reader.changes(["A"], whole.since).stats.n_blocks <= 2


def test_a_group_without_news_is_not_read(index, reader):
    left, right = index.begin([0]), index.begin([1])
    index.write(left, [Row("A", 0, 1, "left")], [0])
    index.write(right, [Row("A", 3, 1, "right")], [1])
    index.advance(left, {0: 1})
    index.advance(right, {3: 1})
    since = reader.changes(["A"]).since
    index.write(right, [Row("A", 3, 2, "news")], [1])
    index.advance(right, {3: 2})
    changes = reader.changes(["A"], since)
    assert [entry.id for entry in changes.entries] == ["news"]
    assert changes.stats.n_blocks == 0  # the tail that comes with the state has it


def test_dead_entries_in_the_clock_do_not_make_a_group_be_read(index, reader):
    old = index.begin()
    index.write(old, [Row("A", 0, 1, "doc"), Row("A", 0, 50, "unstable")])
    for seqno in (1, 2, 3):
        index.write(old, [Row("A", 1, seqno, "next")])
    index.advance(old, {0: 1, 1: 3})
    since = reader.changes(["A"]).since
    new = index.begin()
    index.advance(new, {0: 60})
    ((_, active),) = index.reader.channel_states(["A"])[0].active_by_group.items()
    assert active > 0, "the clock frame does not sum up the dead entry"
    assert reader.changes(["A"], since).stats.n_blocks == 0


def test_a_follower_reads_no_block(index, reader):
    """What is new is in the tail that comes with the channel's state."""
    epoch = index.begin()
    index.write(epoch, [Row("A", 0, 1, "old")])
    index.advance(epoch, {0: 1})
    since = reader.changes(["A"]).since
    index.write(epoch, [Row("A", 0, 2, "new")])
    index.advance(epoch, {0: 2})
    follower = ChangesReader(Proxy(index.reader, blocks=lambda refs: pytest.fail(f"{refs} were read")))
    assert [entry.id for entry in follower.changes(["A"], since).entries] == ["new"]


def test_the_principal_counter_is_the_stores(index, reader):
    index.writer.write([], ["_sync:user:ann"])
    assert reader.principal_counter("_sync:user:ann") == 1
    assert reader.principal_counter("") == 1
