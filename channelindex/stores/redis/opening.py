"""Opens the link that a URL asks for."""

from channelindex.errors import Transient
from channelindex.redis_url import without_password
from channelindex.stores.redis.cluster import ClusterLink
from channelindex.stores.redis.endpoints import server_of, store_address
from channelindex.stores.redis.link import Link


def open_link(url: str, lost: type[Transient], *, reconnects: bool = True) -> Link | ClusterLink:
    """A link to the Redis at *url*, or to all of a cluster; see `Link`. It connects when it is first used.

    Raises:
        ConfigInvalid: *url* is not usable.
    """
    address, where = store_address(url), without_password(url)
    if address.is_cluster:
        return ClusterLink(address, where, lost, reconnects=reconnects)
    return Link(server_of(address), where, lost, reconnects=reconnects)
