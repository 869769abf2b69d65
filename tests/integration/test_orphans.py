"""A node that is process 1 of a container reaps what others leave behind, and nothing of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from devbucket.bucket_config import DevBucketConfig
from devbucket.process import DevBucket
from tests.support.node import Node, until
from tests.support.running import await_stable

PR_SET_CHILD_SUBREAPER = 36
ADOPT = f"import ctypes; ctypes.CDLL(None).prctl({PR_SET_CHILD_SUBREAPER}, 1)\n"


class Adopting(Node):
    """A node to which the kernel gives orphans, as to process 1; it begins with one, whose id is in `orphan`."""

    module = "tests.support.adopting"


def test_orphans_are_reaped_while_the_node_works(tmp_path: Path, redis_url: str, monkeypatch) -> None:
    pid_file = tmp_path / "orphan"
    monkeypatch.setenv("ORPHAN_PID_FILE", str(pid_file))
    with (
        DevBucket(DevBucketConfig(n_vbuckets=16)) as bucket,
        Adopting("n1", tmp_path, redis_url, bucket, index__partitions=4).start() as node,
    ):
        await_stable(redis_url, bucket)
        orphan = psutil.Process(int(pid_file.read_text()))
        assert orphan.ppid() == node.pid
        orphan.send_signal(signal.SIGKILL)
        until(lambda: not psutil.pid_exists(orphan.pid), "the orphan to be reaped")
        assert node.drain() == 0


def test_children_of_ones_own_are_left_to_their_owner() -> None:
    code = ADOPT + (
        "import os, time\n"
        "from workers.node.orphans import adopts_orphans, reap_orphans\n"
        "assert adopts_orphans() and reap_orphans([]) == 0\n"
        "first = os.fork() or os._exit(3)\n"
        "second = os.fork() or os._exit(4)\n"
        "os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT), os.waitid(os.P_PID, second, os.WEXITED | os.WNOWAIT)\n"
        "assert reap_orphans([first, second]) == 0\n"
        "assert os.waitpid(first, 0)[1] >> 8 == 3\n"
        "assert reap_orphans([first]) == 1\n"
        "try: os.waitpid(second, 0)\n"
        "except ChildProcessError: print('reaped')\n"
    )
    root = Path(__file__).resolve().parents[2]
    environ = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=False)
    assert done.stdout == "reaped\n", done.stderr
