"""Makes room for connections: each is a descriptor, of which a process may have few unless it asks for more."""

import resource

from channelindex import logs

SPARE = 100
"""Descriptors for what is no connection of a client: the store, files, those that are just being refused."""

_log = logs.get("serve")


def make_room(max_connections: int) -> int:
    """Raise the limit of this process as far as it may; return the most connections for which there is room.

    A connection for which there is none could not even be refused.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    required = max_connections + SPARE
    limit = required if hard == resource.RLIM_INFINITY else min(required, hard)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    most = max(1, limit - SPARE)
    if most < max_connections:
        _log.warning("serve.few_descriptors", connections=most, msg=f"LimitNOFILE or ulimit -n has to be {required}")
    return most
