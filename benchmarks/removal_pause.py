"""How long Redis is held while one large channel is compacted, by its own clock: scripts, and deletion of old blocks.

Each document is written twice, so half of the channel leaves. `SLOWLOG` has the scripts; `LATENCY` what Redis does by
itself.
"""

import time
from typing import Any, NamedTuple

import redis

from benchmarks.removal_index import N_VBUCKETS, RemovalIndex, Row, Shares
from channelindex.settings import CompactionSettings
from channelindex.stores.redis.store_link import SCRIPTS
from devbucket.embedded_redis import EmbeddedRedis

CHANNEL = "large"
BLOCK_BYTES = 64 << 10
KEY_BYTES, ENTRY_BYTES = 230, 270
"""Of a document's key, and about of its entry: the blocks count, so there are few entries in each."""
BATCH = 1_000
GRACE_S = 1.0
EXPIRY_S = 10.0
"""Time after the grace within which Redis has deleted the blocks."""
SLOW_US = 100


class Pauses(NamedTuple):
    """Bytes of the channel before and after, and the longest that Redis was held, by what.

    By each script, and by commands but scripts, where it was more than SLOW_US; by the deletion of old blocks in one
    go, in whole milliseconds.
    """

    bytes_before: int
    bytes_after: int
    script_us: dict[str, int]
    command_us: int
    expiry_us: int


def measure(megabytes: int) -> Pauses:
    """Compact a channel of so many megabytes."""
    assert megabytes > 0
    rows: list[Row] = [
        (CHANNEL, number % N_VBUCKETS, f"{number:0{KEY_BYTES}}", "1-0123456789abcdef0123456789abcdef", 0)
        for number in range(megabytes * 1_000_000 // ENTRY_BYTES // 2)
    ]
    settings = CompactionSettings(min_lag_s=60.0, grace_s=GRACE_S)
    with EmbeddedRedis() as server, RemovalIndex(server.url, BLOCK_BYTES, settings, Shares(2, 2)) as index:
        for _ in range(2):
            index.hand_over()
            for start in range(0, len(rows), BATCH):
                index.write(rows[start : start + BATCH])
            index.settle(100.0)
        index.hand_over()
        with redis.Redis.from_url(server.url) as client:
            client.config_set("slowlog-log-slower-than", SLOW_US)
            client.config_set("slowlog-max-len", 100_000)
            client.config_set("latency-monitor-threshold", 1)
            bytes_before = index.space().n_bytes
            for script in map(SCRIPTS.__getitem__, ("keep", "switch", "sweep")):
                client.script_load(script.source)  # to compile one takes longer than to run it, once in a server's life
            client.slowlog_reset()
            index.compact(all_channels=True)
            slow: Any = client.slowlog_get(100_000)
            time.sleep(GRACE_S + EXPIRY_S)
            latest: Any = client.execute_command("LATENCY", "LATEST")
        expiry_us = max((event[3] * 1000 for event in latest if event[0] == b"expire-cycle"), default=0)
        return Pauses(bytes_before, index.space().n_bytes, *_longest(slow), expiry_us)


def _longest(slow: list[dict[str, Any]]) -> tuple[dict[str, int], int]:
    """The longest call of each script, and of the other commands."""
    name_by_sha = {script.sha.encode(): name for name, script in SCRIPTS.items()}
    script_us: dict[str, int] = {}
    command_us = 0
    for entry in slow:
        verb, *rest = entry["command"].split(b" ")
        if verb in (b"EVAL", b"EVALSHA"):
            name = name_by_sha.get(rest[0], "sent whole")
            script_us[name] = max(script_us.get(name, 0), entry["duration"])
        else:
            command_us = max(command_us, entry["duration"])
    return script_us, command_us
