"""What the tests fork in place of a program's start is what a start gives: both are looked at side by side."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from channelindex import exits
from devbucket.bucket_config import DevBucketConfig
from devbucket.process import DevBucket
from tests.support import starting
from tests.support.node import Node, until
from tests.support.running import cli

BOTH = [pytest.param(True, id="forked"), pytest.param(False, id="started", marks=pytest.mark.real_start)]
ROLES = ("feed_worker", "batch_writer", "lease_keeper")
N_FILES = 10
"""As many as a supervisor has before it has children; what was left open by who forked it would take their numbers."""

OF_SIGNALS = ("SigIgn", "SigCgt", "Umask", "Groups")


@pytest.fixture(scope="module")
def bucket() -> Iterator[DevBucket]:
    with DevBucket(DevBucketConfig(n_vbuckets=16)) as opened:
        yield opened


def facts_of_a_node(folder: Path, redis_url: str, bucket: DevBucket, kind: type) -> dict[str, object]:
    with Node("n1", folder, redis_url, bucket, index__partitions=8) as node:
        node.log.write_bytes(b"")
        assert isinstance(node.start()._process, kind)
        until(lambda: "event=node.started" in node.log.read_text(), "the node")
        until(lambda: all(map(node.children, ROLES)), "its children")
        until(lambda: int(status_of(node)["SigBlk"], 16) == 0, "a moment in which it forks nobody, and blocks nothing")
        seen = facts(node)
        assert node.drain() == exits.OK
    return seen


def status_of(node: Node) -> dict[str, str]:
    return dict(line.split(":\t") for line in Path(f"/proc/{node.pid}/status").read_text().splitlines())


def facts(node: Node) -> dict[str, object]:
    """What the kernel knows of the node's supervisor, besides its memory and command line."""
    process = psutil.Process(node.pid)
    status = status_of(node)
    files = [str(Path(f"/proc/{node.pid}/fd/{number}").readlink()) for number in range(N_FILES)]
    return {
        **{name: status[name] for name in OF_SIGNALS},
        "files": [re.sub(r"\[\d+]", "", file) for file in files],
        "folder": process.cwd(),
        "session": os.getsid(node.pid) == node.pid,
        "nice": process.nice(),
    }


@pytest.fixture
def _forks() -> None:
    if not starting.MAY_FORK:
        pytest.skip("nothing is forked here: REAL_STARTS or coverage is on")


@pytest.mark.usefixtures("_forks")
def test_a_forked_node_is_to_the_kernel_what_a_started_one_is(tmp_path, redis_url, bucket, monkeypatch):
    monkeypatch.setattr(starting, "forks", True)
    forked = facts_of_a_node(tmp_path, redis_url, bucket, starting.Forked)
    monkeypatch.setattr(starting, "forks", False)
    assert facts_of_a_node(tmp_path, redis_url, bucket, subprocess.Popen) == forked


@pytest.mark.parametrize("forks", BOTH)
def test_a_command_has_its_arguments_environment_output_and_exit_code(tmp_path, monkeypatch, forks):
    monkeypatch.setenv("CHANNELINDEX_NODE_NAME", "node-7")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "channelindex.toml").write_text('index.name = "other"\n')
    done = cli("config", "show", "--config", "channelindex.toml")
    assert (done.returncode, done.stderr) == (exits.OK, "")
    assert "node-7" in done.stdout
    assert "other" in done.stdout
    wrong = cli("status", "--nope")
    assert (wrong.returncode, wrong.stdout) == (exits.USAGE, "")
    assert wrong.stderr == "channelindex: unknown argument --nope (see channelindex status --help)\n"
    assert cli("status", "--set", "index.store=redis://127.0.0.1:1/0").returncode == exits.STORE
    monkeypatch.delenv("CHANNELINDEX_NODE_NAME")
    assert "node-7" not in cli("config", "show").stdout


@pytest.mark.parametrize("forks", BOTH)
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_end_by_a_signal_is_reported_as_it_is(tmp_path, redis_url, bucket, forks, signum):
    with Node("n1", tmp_path, redis_url, bucket, index__partitions=8).start() as node:
        until(lambda: all(map(node.children, ROLES)), "its children")
        node.signal(signum)
        assert node.wait() == (-signal.SIGKILL if signum is signal.SIGKILL else exits.OK)
        until(lambda: not psutil.pid_exists(node.pid), "the process to be gone")


@pytest.mark.usefixtures("_forks")
@pytest.mark.parametrize(("name", "value"), [("PYTHONPATH", "/nowhere"), ("PYTHONDEVMODE", "1"), ("LC_ALL", "C")])
def test_what_the_interpreter_reads_at_its_start_makes_a_start_real(name, value):
    assert not starting.must_be_real({**os.environ, "ANY": "thing", "PYTHONUNBUFFERED": "1"})
    assert starting.must_be_real({**os.environ, name: value})
