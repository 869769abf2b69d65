"""The index store as `status` and `top` show it: how fast it answers, its memory, and why it takes no writes."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from channelindex.errors import ChannelIndexError
from channelindex.redis.link import Link

_FIELDS = re.compile(
    rb"^(used_memory|maxmemory|instantaneous_ops_per_sec|aof_last_write_status|rdb_last_bgsave_status):(\w+)\r?$",
    re.MULTILINE,
)
_MB = 1 << 20
MEMORY, DISK = "memory", "disk"
_SHORT = {MEMORY: "its memory is FULL (maxmemory)", DISK: "its DISK is full or fails"}
_PROBLEMS = {
    MEMORY: "index.store takes no writes: its memory is full (maxmemory)",
    DISK: "index.store cannot write to its disk, and may take no writes: see its log",
}


def describe_server(redis: Link | None) -> dict[str, Any]:
    """Return what the servers of *redis* say of their memory and work; null where that is not for us to know.

    `full`: "memory" if one of them has used all that `maxmemory` allows, "disk" if one could not write its file the
    last time that it tried, else null. A Redis takes no writes then.
    """
    try:
        infos = [dict(_FIELDS.findall(server.execute("INFO"))) for server in redis.servers()] if redis else []
    except ChannelIndexError:  # an account for the leases alone may not ask
        infos = []
    if not infos:
        return {"memory_bytes": None, "memory_limit_bytes": None, "operations_per_s": None, "full": None}
    used, limits = ([int(info.get(name, 0)) for info in infos] for name in (b"used_memory", b"maxmemory"))
    return {
        "memory_bytes": sum(used),
        "memory_limit_bytes": sum(limits) if all(limits) else None,
        "operations_per_s": sum(int(info.get(b"instantaneous_ops_per_sec", 0)) for info in infos),
        "full": _full(infos, used, limits),
    }


def _full(infos: Sequence[Mapping[bytes, bytes]], used: Sequence[int], limits: Sequence[int]) -> str | None:
    if any(0 < limit <= taken for taken, limit in zip(used, limits, strict=True)):
        return MEMORY
    written = (info.get(name) for info in infos for name in (b"aof_last_write_status", b"rdb_last_bgsave_status"))
    return DISK if b"err" in written else None


def store_line(store: Mapping[str, Any]) -> str:
    """Return `store` of `channelindex status --json` as people read it."""
    text = f"store answers in {store['read_ms']:.0f} ms"
    if store["memory_bytes"] is not None:
        text += f", {store['memory_bytes'] / _MB:.1f} MB"
        if store["memory_limit_bytes"]:
            text += f" of {store['memory_limit_bytes'] / _MB:.1f} MB"
        text += f", {store['operations_per_s']} operations per second"
    return f"{text}; {_SHORT[store['full']]}" if store["full"] else text


def problems(store: Mapping[str, Any]) -> list[str]:
    """Return what `status --check` and `top` find wrong with the store, a line each."""
    return [_PROBLEMS[store["full"]]] if store.get("full") else []
