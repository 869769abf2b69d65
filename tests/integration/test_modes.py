"""What the programs create is their owner's alone, whatever umask they inherit."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from devbucket.bucket_config import DevBucketConfig
from devbucket.process import DevBucket
from tests.support.node import Node, until
from tests.support.running import await_stable

pytestmark = pytest.mark.real_start


@pytest.fixture(autouse=True)
def _careless_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def open_to_others(folder: Path) -> list[str]:
    """What below *folder*, and it itself, others than the owner may read, write or enter."""
    every = [folder, *folder.rglob("*")]
    modes = {path: stat.S_IMODE(path.lstat().st_mode) for path in every}
    return [f"{path.name}: {mode:o}" for path, mode in modes.items() if mode & 0o077]


@pytest.fixture
def bucket() -> Iterator[DevBucket]:
    with DevBucket(DevBucketConfig(n_vbuckets=16)) as opened:
        yield opened


def test_a_node_opens_its_run_directory_to_nobody(tmp_path: Path, redis_url: str, bucket: DevBucket) -> None:
    run_dir = tmp_path / "run"
    settings = {"node__run_dir": str(run_dir), "index__partitions": 8}
    with Node("n1", tmp_path, redis_url, bucket, **settings).start():
        until((run_dir / "n1.incarnation").exists, "the node to run")
        await_stable(redis_url, bucket)
        assert {path.suffix for path in run_dir.iterdir()} == {".incarnation"}
        assert open_to_others(run_dir) == []


def test_a_node_in_memory_opens_its_socket_to_nobody(tmp_path: Path, bucket: DevBucket) -> None:
    run_dir = tmp_path / "run"
    settings = {"node__run_dir": str(run_dir), "index__partitions": 8}
    with Node("n1", tmp_path, "memory://", bucket, **settings).start():
        until((run_dir / "channels.sock").is_socket, "the socket")
        assert {path.suffix for path in run_dir.iterdir()} >= {".sock", ".lock"}
        assert open_to_others(run_dir) == []


def test_a_dev_bucket_opens_its_file_and_its_operators_socket_to_nobody(tmp_path: Path) -> None:
    folder = tmp_path / "bucket"
    folder.mkdir(mode=0o700)
    config = DevBucketConfig(n_vbuckets=4, file=folder / "bucket.db", admin=str(folder / "admin.sock"))
    with DevBucket(config) as bucket:
        bucket.bulk_load([(0, 1, b"k", b"{}")])
        assert {path.name for path in folder.iterdir()} >= {"bucket.db", "bucket.db-wal", "admin.sock"}
        assert open_to_others(folder) == []


def test_a_redis_of_our_own_is_in_a_folder_that_is_open_to_nobody(tmp_path: Path) -> None:
    code = (
        "import os, sys; from devbucket.embedded_redis import EmbeddedRedis\n"
        "with EmbeddedRedis() as server: print(f'{server.folder.stat().st_mode & 0o777:o}', "
        "f'{server.socket.stat().st_mode & 0o777:o}')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["700", "700"]
