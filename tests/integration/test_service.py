"""A tour as a new operator: build, install, start as systemd would, reload under load, watch, stop, upgrade, remove.

`make tour` shows each step's output.
"""

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from channelindex import exits
from channelindex.feeds.dcp.kv import KvClient
from channelindex.settings import IndexSettings
from channelindex.stores import open_reader
from devbucket.bucket_config import DevBucketConfig
from devbucket.process import DevBucket
from devbucket.sync_gateway.layouts import InlineLayout
from devbucket.sync_gateway.loader import Loader
from devbucket.sync_gateway.revisions import Revision
from devbucket.sync_gateway.synthetic import synthetic_revisions
from tests.support.history import expected_channels
from tests.support.manager import Service
from tests.support.node import until
from tests.support.ports import free_port
from tests.support.running import await_stable, connect, indexed_channels
from tests.support.scrape import get

ROOT = Path(__file__).resolve().parents[2]
MAX_EXPOSURE = 2.0
STALL_S, STALL_FACTOR = 2.0, 10.0
"""A stable clock that stands still for longer than both, the second times what it does at rest, is shown as a warning.

That is no assertion: a machine that is paused for two seconds is no fault of a reload. What is asserted is order: the
clock goes on after each reload before the next is asked for, it never goes back, and in the end everything is there.
"""
SAME_CLOCK_S = 30.0
"""How far apart two readings of the monotonic clock may be; different clocks are years apart."""
QUIET_S = 1.0
INSTANCE = "tour"

pytestmark = [
    pytest.mark.timeout(300),  # it builds and installs, with all that the program needs
    pytest.mark.slow,
]


def show(*lines: object) -> None:
    """Tell whoever looks (pytest -s)."""
    print(*lines, sep="\n")


def run(*command: object) -> str:
    """The output of *command*, which must succeed."""
    show(f"\n$ {' '.join(map(str, command))}")
    done = subprocess.run([*map(str, command)], cwd=ROOT, check=False, capture_output=True, text=True)
    show(done.stdout.rstrip())
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def make(target: str, root: Path, *variables: str) -> str:
    """`make TARGET`, installing below *root*, on this Python."""
    return run("make", "--no-print-directory", target, f"DESTDIR={root}", f"PY={sys.executable}", *variables)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a machine on which it is installed."""
    root = tmp_path_factory.mktemp("machine")
    make("install", root, f"FROM={wheel}")
    return root


def unit_of(root: Path) -> Path:
    return root / "usr/local/lib/systemd/system/channelindex@.service"


def test_everything_is_where_it_belongs_and_names_its_final_place(installed):
    found = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file() or path.is_symlink()}
    assert {
        "usr/local/bin/channelindex",
        "usr/local/lib/systemd/system/channelindex@.service",
        "usr/local/lib/systemd/system/channelindex-serve@.service",
        "usr/local/lib/systemd/system/channelindex.target",
        "usr/local/lib/sysusers.d/channelindex.conf",
        "usr/local/lib/tmpfiles.d/channelindex.conf",
        "etc/channelindex/example.toml",
        "opt/channelindex/share/man/man1/channelindex.1",
        "opt/channelindex/share/man/man5/channelindex.toml.5",
        "opt/channelindex/share/zsh/site-functions/_channelindex",
        "usr/local/share/bash-completion/completions/channelindex",
        "usr/local/share/man/man1/channelindex.1",
        "usr/local/share/man/man5/channelindex.toml.5",
        "opt/channelindex/share/doc/channelindex/operations.md",
        "opt/channelindex/share/doc/channelindex/alerts.yml",
        "opt/channelindex/share/doc/channelindex/dashboard.json",
    } <= found
    home = installed / "opt/channelindex"
    assert (installed / "usr/local/bin/channelindex").readlink() == Path("/opt/channelindex/bin/channelindex")
    assert (home / "bin/channelindex").read_text().startswith("#!/opt/channelindex/bin/python")
    assert str(installed) not in unit_of(installed).read_text()
    completion = "bash-completion/completions/channelindex"
    assert (installed / f"usr/local/share/{completion}").readlink() == Path(f"/opt/channelindex/share/{completion}")
    assert "undrain" in (home / "share" / completion).read_text()
    for path in (home / "bin").iterdir():
        assert path.is_symlink() or bytes(installed) not in path.read_bytes(), path


def test_systemd_accepts_the_units_and_finds_little_to_expose(installed, tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed (Debian: apt-get install systemd)")
    folder = unit_of(installed).parent
    for name in ("channelindex@.service", "channelindex-serve@.service", "channelindex.target"):
        text = (folder / name).read_text().replace("/opt/channelindex", f"{installed}/opt/channelindex")
        (tmp_path / name).write_text(text)
    units = [tmp_path / f"{name}@{INSTANCE}.service" for name in ("channelindex", "channelindex-serve")]
    done = subprocess.run(
        ["systemd-analyze", "verify", *units, tmp_path / "channelindex.target"],
        capture_output=True,
        text=True,
        check=False,
    )
    show(f"\n$ systemd-analyze verify: exit code {done.returncode}", done.stderr.rstrip())
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("channelindex@.service", "channelindex-serve@.service"):
        security = run("systemd-analyze", "security", "--offline=yes", tmp_path / name)
        assert float(security.rpartition("service:")[2].split()[0]) <= MAX_EXPOSURE


def test_the_example_configuration_is_valid_and_the_commands_work(installed, tmp_path):
    (tmp_path / "password").write_text("secret\n")
    example = installed / "etc/channelindex/example.toml"
    given = ("--config", example, "--set", f"source.password_file={tmp_path / 'password'}")
    command = (installed / "opt/channelindex/bin/python", "-I", "-m", "channelindex", "config")
    run(*command, "check", *given)
    assert "couchbase://10.0.0.11" in run(*command, "show", *given)


class Load(threading.Thread):
    """Writes small batches until told to stop, and knows what must be indexed."""

    def __init__(self, client: KvClient) -> None:
        super().__init__(daemon=True)
        self._loader = Loader(client, InlineLayout())
        self._source = synthetic_revisions(seed=11, n_documents=500)
        self._stop_asked = threading.Event()
        self.written: list[Revision] = []
        self.start()

    def run(self) -> None:
        while not self._stop_asked.wait(0.02):
            part = [next(self._source) for _ in range(20)]
            self._loader.load(part)
            self.written += part

    def finish(self) -> None:
        self._stop_asked.set()
        self.join()

    def expected(self):
        return expected_channels(
            [{"id": r.id, "rev": r.rev, "channels": r.channels, "deleted": r.deleted} for r in self.written]
        )


class StableClock(threading.Thread):
    """Watches the sum of the stable clock: when it moved."""

    def __init__(self, redis_url: str) -> None:
        super().__init__(daemon=True)
        self._redis_url = redis_url
        self._stop_asked = threading.Event()
        self.moved_at: list[float] = []
        self.moved_back = False
        self.start()

    def run(self) -> None:
        last = 0
        with closing(open_reader(IndexSettings("channels", self._redis_url))) as store:
            while not self._stop_asked.wait(0.02):
                total = sum(sum(record.stable) for record in store.partition_records())
                self.moved_back |= total < last
                if total != last:
                    self.moved_at.append(time.monotonic())
                last = total

    def await_move(self, after: float) -> float:
        """Wait until it has moved after *after*; when it did."""
        until(lambda: self.moved_at and self.moved_at[-1] > after, "the stable clock to move")
        return self.moved_at[-1]

    def longest_stop_s(self, since: float, to: float) -> float:
        """The longest time between two moves, of which the second came after *since* and the first before *to*."""
        moves = list(pairwise(self.moved_at))
        return max(later - earlier for earlier, later in moves if later > since and earlier < to)

    def finish(self) -> None:
        self._stop_asked.set()
        self.join()


@pytest.fixture
def bucket() -> Iterator[DevBucket]:
    with DevBucket(DevBucketConfig(n_vbuckets=64)) as bucket:
        yield bucket


@pytest.fixture
def configure(installed, redis_url, bucket) -> Callable[[int], int]:
    """Writes the configuration of the instance with as many workers of each kind; the port of its metrics."""
    port = free_port()
    folder = installed / "etc/channelindex"
    (folder / f"{INSTANCE}.password").write_text(f"{bucket.password}\n")

    def write(n_workers: int) -> int:
        (folder / f"{INSTANCE}.toml").write_text(
            f'[source]\nurl = "{bucket.url}"\nuser = "{bucket.user}"\n'
            f'[index]\nstore = "{redis_url}"\npartitions = 16\n'
            f"[workers]\nfeed_workers = {n_workers}\nbatch_writers = {n_workers}\n"
            f'[metrics]\nlisten = "127.0.0.1:{port}"\n[coordination]\nttl_s = 2\n'
        )
        return port

    return write


def workers_of(service: Service) -> tuple[int, int]:
    names = [child.name() for child in psutil.Process(service.process.pid).children()]
    return names.count("feed_worker"), names.count("batch_writer")


def has_workers(service: Service, count: int) -> bool:
    return workers_of(service) == (count, count)


def scrape(port: int) -> dict[str, float]:
    totals: dict[str, float] = {}
    for family in text_string_to_metric_families(get(port, "/metrics")[1]):
        for sample in family.samples:
            totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
    return totals


def is_ready(port: int) -> bool:
    return get(port, "/readyz")[0] == 200


def test_a_service_starts_reloads_under_load_and_stops(installed, redis_url, bucket, configure, tmp_path):
    port = configure(2)
    log = tmp_path / "journal"
    with connect(bucket) as client, Service(unit_of(installed), INSTANCE, installed, log).start() as service:
        ready = service.wait_for("READY", "1")
        show(f"\nREADY=1 STATUS={ready.told['STATUS']}")
        until(lambda: is_ready(port), "the node to be ready")
        load, clock = Load(client), StableClock(redis_url)
        quiet_from = clock.await_move(after=time.monotonic())
        time.sleep(QUIET_S)
        quiet_s = clock.longest_stop_s(quiet_from, time.monotonic())
        show(f"stable clock: stands still for {quiet_s:.2f} s at most while nothing else happens")
        for count in (4, 1):
            asked = time.monotonic()
            configure(count)
            service.reload()
            began = service.wait_for("RELOADING", "1", after=asked)
            done = service.wait_for("READY", "1", after=began.at)
            until(partial(has_workers, service, count), f"{count} workers of each kind")
            until(lambda: is_ready(port), "the node to be ready")
            moved_at = clock.await_move(after=done.at)
            stop_s = clock.longest_stop_s(asked, moved_at)
            show(
                f"reload to {count}+{count}: RELOADING=1 after {began.at - asked:.2f} s, "
                f"READY=1 after {done.at - asked:.2f} s; the stable clock stood still for {stop_s:.2f} s"
            )
            if stop_s > max(STALL_S, STALL_FACTOR * quiet_s):
                show(f"WARNING: that is more than {STALL_S:g} s and {STALL_FACTOR:g} times what it does at rest")
            assert int(began.told["MONOTONIC_USEC"]) / 1e6 == pytest.approx(began.at, abs=SAME_CLOCK_S)
        load.finish()
        await_stable(redis_url, bucket)
        clock.finish()
        show(f"{len(load.written)} revisions")
        assert not clock.moved_back
        assert indexed_channels(redis_url) == load.expected()

        samples = scrape(port)
        for name in ("node_ready", "leases", "partition_lag_seconds", "node_reloads_total", "process_restarts_total"):
            show(f"channelindex_{name} {samples[f'channelindex_{name}']:g}")
        assert samples["channelindex_node_reloads_total"] == 2
        assert samples["channelindex_process_restarts_total"] == 0
        status = service.wait_until(lambda told: "STATUS" in told, "STATUS", after=time.monotonic())
        show(f"STATUS={status.told['STATUS']}")
        assert "16 partitions" in status.told["STATUS"]

        asked = time.monotonic()
        assert service.stop() == exits.OK
        stopping = [message for message in service.messages if message.at > asked and "STOPPING" in message.told]
        assert len(stopping) == 1
        assert any("EXTEND_TIMEOUT_USEC" in message.told for message in service.messages if message.at > asked)
        show(f"STOPPING=1; stopped after {time.monotonic() - asked:.2f} s with exit code 0")
    lines = log.read_text().splitlines()
    assert all(line[0] == "<" and line[2] == ">" for line in lines), "every line has a priority for journald"
    assert bucket.password not in log.read_text()
    show("\njournal:", *lines[:3], "…", *lines[-3:])


def test_the_watchdog_is_fed_by_the_loop_alone(installed, redis_url, bucket, configure, tmp_path):
    configure(1)
    unit = tmp_path / "channelindex@.service"
    unit.write_text(unit_of(installed).read_text().replace("WatchdogSec=30", "WatchdogSec=1"))
    with Service(unit, INSTANCE, installed, tmp_path / "journal").start() as service:
        service.wait_for("READY", "1")
        fed = service.wait_for("WATCHDOG", "1")
        service.wait_for("WATCHDOG", "1", after=fed.at)
        supervisor = psutil.Process(service.process.pid)
        supervisor.suspend()
        until(lambda: supervisor.status() == psutil.STATUS_STOPPED, "the supervisor to stand still")
        n_before = service.messages.index(service.mark())
        time.sleep(1.5)  # three times as long as it takes until it is fed again
        assert not any("WATCHDOG" in message.told for message in service.messages[n_before:])
        supervisor.resume()
        service.wait_for("WATCHDOG", "1", after=time.monotonic())


def test_a_wrong_configuration_ends_a_start_for_good_and_a_reload_without_harm(
    installed, redis_url, bucket, configure, tmp_path
):
    configure(1)
    file = installed / f"etc/channelindex/{INSTANCE}.toml"
    good = file.read_text()
    file.write_text(good.replace("feed_workers = 1", "feed_workers = 0"))
    with Service(unit_of(installed), INSTANCE, installed, tmp_path / "journal").start() as service:
        assert service.process.wait(60) == exits.CONFIG
    assert (tmp_path / "journal").read_text().startswith("<3>channelindex: workers.feed_workers = 0 ")
    assert f"{exits.CONFIG}" in unit_of(installed).read_text().partition("RestartPreventExitStatus=")[2].splitlines()[0]
    file.write_text(good)
    with Service(unit_of(installed), INSTANCE, installed, tmp_path / "journal").start() as service:
        ready = service.wait_for("READY", "1")
        file.write_text(good.replace("feed_workers = 1", "feed_workers = 0"))
        with pytest.raises(subprocess.CalledProcessError) as failed:
            service.reload()
        assert failed.value.returncode == exits.CONFIG
        assert "workers.feed_workers" in failed.value.stdout
        file.write_text(good.replace("partitions = 16", "partitions = 32"))  # right, but not for this node
        service.reload()
        again = service.wait_for("READY", "1", after=ready.at)
        assert "refused" in again.told["STATUS"]
        assert service.stop() == exits.OK


def test_what_cannot_be_installed_is_said_in_one_line_and_leaves_nothing(tmp_path):
    root = tmp_path / "machine"

    def refused(*variables: str, target: str = "install") -> str:
        command = ["make", "--no-print-directory", target, f"PY={sys.executable}", f"DESTDIR={root}", *variables]
        done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
        assert done.returncode
        assert "Traceback" not in done.stderr
        assert not any(path.is_file() for path in root.rglob("*"))
        return done.stderr

    assert "folders must be absolute" in refused("PREFIX=/opt/channel index")
    assert "folders must be absolute" in refused("PREFIX=opt")
    assert "nothing was installed" in refused("FROM=dist/absent.whl")
    assert "no version before" in refused(target="rollback")
    assert "nothing of ours" in refused(target="uninstall")
    (tmp_path / "file").touch()
    assert "Not a directory" in refused(f"DESTDIR={tmp_path / 'file'}")
    foreign = root / "opt/channelindex"
    foreign.mkdir(parents=True)
    assert "not ours" in refused()


def test_an_upgrade_can_be_taken_back_and_all_of_it_removed(installed, wheel, tmp_path):
    root = tmp_path / "machine"
    shutil.copytree(installed, root, symlinks=True)
    marker = root / "opt/channelindex/first"
    marker.touch()
    mine = root / "etc/channelindex/mine.toml"
    mine.touch()
    make("install", root, f"FROM={wheel}")
    assert not marker.exists()
    make("rollback", root)
    assert marker.exists()
    make("uninstall", root)
    left = {path.relative_to(root).parts[0] for path in root.rglob("*") if not path.is_dir()}
    assert left <= {"etc", "run", "credentials"}
    assert mine.exists()
    assert not (root / "etc/channelindex/example.toml").exists()
