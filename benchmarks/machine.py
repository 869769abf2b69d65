"""Says where and of what figures are: without that they are worth nothing in a year."""

import os
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson
import psutil

from channelindex import kernel
from devbucket.embedded_redis import find_redis_server, server_version

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
_LIBRARIES = ("msgspec", "redis", "cramjam")
_BYTES_PER_DOCUMENT = 6_000
"""More than bucket, node and Redis together need for one."""


def warm_memory(n_documents: int) -> None:
    """Have the system fetch the memory that a run of so many documents will need, before it begins.

    A virtual machine gets a page from its host when somebody first touches it, and may lose it again after that process
    has ended. Such a page costs several times what another one does, and whoever runs first would pay for who is next.
    """
    n_bytes = min(n_documents * _BYTES_PER_DOCUMENT, psutil.virtual_memory().available // 2)
    assert len(b"\x01" * n_bytes) == n_bytes, "each page is written once"


def describe() -> dict[str, Any]:
    """The machine, the versions of what matters, and the commit; and how busy the machine is with something else."""
    return {
        "commit": _git("rev-parse", "--short", "HEAD") + ("-dirty" if _git("status", "--porcelain") else ""),
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "redis": ".".join(map(str, server_version(find_redis_server()))),
        "kernel": kernel.description(),
        "libraries": {name: version(name) for name in _LIBRARIES},
    }


def write_results(name: str, figures: dict[str, Any]) -> Path:
    """Write *figures* with `describe` to a file of its own in benchmarks/results; return it."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_bytes(orjson.dumps({"made_by": describe(), **figures}, option=orjson.OPT_INDENT_2))
    return path


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], check=False, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
