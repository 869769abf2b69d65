"""A node of its own processes as the benchmarks run it, and what its Redis used."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import redis

from devbucket.process import DevBucket

STOP_TIMEOUT_S = 60.0


@contextmanager
def running_node(
    folder: str | Path, store_url: str, bucket: DevBucket, *settings: str, module: str = "channelindex"
) -> Iterator[psutil.Process]:
    """Run a node that indexes *bucket* into *store_url* while the context is open; yields its supervisor.

    *settings* are lines of its configuration, *module* is run like `channelindex`.
    """
    config = Path(folder) / "node.toml"
    lines = (
        f'node.name = "bench"\nnode.run_dir = "{folder}"',
        f'source.url = "{bucket.url}"\nsource.user = "{bucket.user}"\nsource.password = "{bucket.password}"',
        f'index.store = "{store_url}"\nlog.level = "warning"',
        *settings,
    )
    config.write_text("\n".join(lines) + "\n")
    node = subprocess.Popen([sys.executable, "-m", module, "run", "--config", config])
    try:
        yield psutil.Process(node.pid)
    finally:
        node.terminate()
        node.wait(STOP_TIMEOUT_S)


def redis_cpu_s(client: "redis.Redis") -> float:
    """CPU seconds of a Redis so far."""
    cpu: Any = client.info("cpu")
    return float(cpu["used_cpu_user"] + cpu["used_cpu_sys"])
