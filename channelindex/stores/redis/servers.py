"""Reads facts about the servers of a store: identity, persistence, eviction."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from channelindex.errors import ConfigInvalid, StoreUnavailable
from channelindex.redis.link import Link
from channelindex.stores.redis.keys import SETTING
from channelindex.stores.redis.store_link import open_link

_EVICTS_ANY_KEY = "allkeys-"
"""Prefix of the policies that evict keys without a time to live; an index has no others."""


class Server(NamedTuple):
    """One server. `run_id` is new after each restart, `replication_id` after each failover, of which it knows."""

    where: str
    run_id: str
    replication_id: str
    version: str
    maxmemory_policy: str


def ask_servers(link: Link) -> Sequence[Server]:
    """All servers that hold a part of the index, in a fixed order. One round trip to each."""
    return [_server(server.where, server.pipeline(_QUESTIONS)) for server in link.servers()]


def ask_histories(link: Link) -> Sequence[str]:
    """The replication id of each server, in a fixed order: new after each restart and each failover, and asked cheaply.

    One round trip to each.
    """
    return [_history_in(server.execute(*_REPLICATION)) for server in link.servers()]


def _history_in(info: bytes) -> str:
    _, _, rest = info.partition(b"master_replid:")
    return rest.partition(b"\r")[0].decode(errors="replace")


_REPLICATION = ("INFO", "replication")
_QUESTIONS = [("INFO", "server"), _REPLICATION, ("INFO", "memory")]


def digest_of(servers: Sequence[Server]) -> int:
    """The digest of *servers* and of their history, see `IndexWriter.servers`; never 0."""
    known = "\n".join(sorted(f"{server.run_id} {server.replication_id}" for server in servers))
    return int.from_bytes(hashlib.sha256(known.encode()).digest()[:6], "big") or 1


def refuse_eviction(servers: Sequence[Server]) -> None:
    """Accept *servers* only if none of them may evict the index's keys when its memory is full.

    Raises:
        ConfigInvalid: one may.
    """
    for server in servers:
        if server.maxmemory_policy.startswith(_EVICTS_ANY_KEY):
            raise ConfigInvalid(
                f"{SETTING} {server.where} has maxmemory-policy {server.maxmemory_policy}: when its memory is full, it "
                "deletes parts of the index. Set it to noeviction, or index.allow_eviction = true to lose channels then"
            )


def describe_servers(url: str, *, allow_eviction: bool) -> list[str]:
    """A line for each server of the store at *url*: its version and its maxmemory-policy.

    Raises:
        ConfigInvalid: one may evict keys, and that is not allowed.
        AuthenticationFailed, StoreUnavailable: see `Link`.
    """
    with open_link(url, StoreUnavailable) as link:
        servers = ask_servers(link)
    if not allow_eviction:
        refuse_eviction(servers)
    return [
        f"{SETTING} {server.where}: version {server.version}, maxmemory-policy {server.maxmemory_policy or 'unknown'}"
        for server in servers
    ]


def _server(where: str, sections: Sequence[bytes]) -> Server:
    lines = (line.partition(":") for info in sections for line in info.decode(errors="replace").splitlines())
    found = {name: value for name, _, value in lines}
    version = found.get("valkey_version") or found.get("redis_version", "")
    policy = found.get("maxmemory_policy", "")  # a hosted one may hide it
    return Server(where, found.get("run_id", ""), found.get("master_replid", ""), version, policy)
