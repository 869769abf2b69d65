"""Opens an index for reading by its URL, for programs that only read."""

from channelindex.blocks import OnCorrupt, refuse
from channelindex.reading.async_reader import AsyncChangesReader
from channelindex.reading.changes_reader import ChangesReader
from channelindex.settings import IndexSettings
from channelindex.stores import open_reader
from channelindex.stores.pool import MAX_STORES, ReaderPool


def open_index(
    url: str,
    name: str = "channels",
    *,
    user: str = "",
    password: str = "",
    run_dir: str | None = None,
    on_corrupt: OnCorrupt = refuse,
    max_connections: int = MAX_STORES,
) -> ChangesReader:
    """Return a reader of the index *name* in the store at *url*. Connects when it is first asked.

    *url* is that of `index.store`: `redis://…`, `rediss://…`, `unix://…`, `redis+cluster://…`, `redis+sentinel://…`,
    `couchbase://host/bucket` with *user* and *password*, or `memory://` with the *run_dir* of the node that holds it.
    Close what is returned, or use it in a `with` statement. Any number of threads may share it: at most
    *max_connections* of them are answered at once, the others wait; all who follow wait for news on one more. A process
    that was forked opens its own. *on_corrupt*: see `ChangesReader`.

    Raises:
        ConfigInvalid: *url* names no store that we know.
        ValueError: *max_connections* is less than 1.
        ExtraMissing: *url* names a bucket, and `channelindex[couchbase]` is not installed.
    """
    settings = IndexSettings(name, url, user=user, password=password)
    first = open_reader(settings, run_dir)  # what is wrong with the URL is said here
    return ChangesReader(ReaderPool(lambda: open_reader(settings, run_dir), max_connections, first), on_corrupt)


def open_async_index(
    url: str,
    name: str = "channels",
    *,
    user: str = "",
    password: str = "",
    run_dir: str | None = None,
    max_connections: int = MAX_STORES,
) -> AsyncChangesReader:
    """Return a reader for asyncio; arguments as of `open_index`. Use it in an `async with` statement, or close it.

    Three connections more look for news, for all followers.

    Raises:
        See `open_index`.
    """
    settings = IndexSettings(name, url, user=user, password=password)
    first = open_reader(settings, run_dir)
    pool = ReaderPool(lambda: open_reader(settings, run_dir), max_connections + 1, first)
    return AsyncChangesReader(pool, max_connections)
