"""Takes an index out of Redis."""

from channelindex.errors import OutcomeUnknown
from channelindex.stores.redis.keys import Keys
from channelindex.stores.redis.store_link import open_link

_SCAN_COUNT = 1000


def remove_index(url: str, index_name: str) -> None:
    """Remove all keys of an index that nobody writes any more. May be repeated.

    Raises:
        StoreUnavailable, OutcomeUnknown: some may still be there.
    """
    link = open_link(url, OutcomeUnknown)
    pattern = Keys(index_name).all_pattern()
    try:
        for server in link.servers():
            cursor = b"0"
            while True:
                cursor, keys = server.execute("SCAN", cursor, "MATCH", pattern, "COUNT", _SCAN_COUNT)
                server.pipeline([("UNLINK", key) for key in keys])
                if cursor == b"0":
                    break
    finally:
        link.close()
