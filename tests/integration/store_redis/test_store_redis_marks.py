"""Marks of owners: a number is never set twice, in whatever order one process comes to its epochs."""

from contextlib import closing

from channelindex.errors import OutcomeUnknown
from channelindex.stores.redis.keys import Keys
from channelindex.stores.redis.marks import MarkSetter, read_marks
from channelindex.stores.redis.store_link import open_link


def test_an_epoch_that_is_come_back_to_goes_on_with_its_own_numbers(redis_url):
    keys = Keys("marks")
    with closing(open_link(redis_url, OutcomeUnknown)) as link:
        marks = MarkSetter(link, keys)
        marks.confirm(7, marks.set(7))
        assert marks.set(7) == 2
        assert marks.set(5) == 1
        assert marks.set(7) == 3
        assert all(slot == {5: 1, 7: 3} for slot in read_marks(link, keys))
