"""Opens a link to the Redis that a URL names."""

from channelindex.redis.cluster_link import ClusterLink
from channelindex.redis.endpoints import checked_address, server_of
from channelindex.redis.errors import Purpose
from channelindex.redis.link import Link, ServerLink
from channelindex.redis_url import without_password


def open_redis(url: str, purpose: Purpose, *, reconnects: bool = True, timeout_s: float | None = None) -> Link:
    """Make a link to the Redis at *url*, or to all of a cluster. It connects when it is first used.

    *timeout_s*: for connecting and for each reply, where the URL says nothing else.

    Raises:
        ConfigInvalid: *url* is not usable.
    """
    address, where = checked_address(url, purpose.setting), without_password(url)
    if address.is_cluster:
        return ClusterLink(address, purpose, where, reconnects=reconnects, timeout_s=timeout_s)
    return ServerLink(server_of(address, timeout_s), purpose, where, reconnects=reconnects)
