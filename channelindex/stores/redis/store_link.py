"""Opens the link to the Redis of an index."""

from importlib.resources import files

from channelindex.errors import StoreUnavailable, Transient
from channelindex.redis.connect import open_redis
from channelindex.redis.errors import Purpose
from channelindex.redis.link import Link
from channelindex.redis.scripts import Scripts
from channelindex.stores.redis.keys import SETTING

SCRIPTS = Scripts(files(__package__))


def open_link(url: str, lost: type[Transient], *, reconnects: bool = True) -> Link:
    """A link to the Redis at *url*; see `open_redis`.

    *lost* is what a request means whose reply did not come: `OutcomeUnknown` to one who writes, `StoreUnavailable` to
    one who only reads.

    Raises:
        ConfigInvalid: *url* is not usable.
    """
    return open_redis(url, Purpose(SETTING, SCRIPTS, StoreUnavailable, lost), reconnects=reconnects)
