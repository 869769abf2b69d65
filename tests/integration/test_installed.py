"""What a user installs: a wheel in an empty environment, beside an application with packages named as our parts."""

import json
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from channelindex import exits
from devbucket import DevBucket
from devbucket.bucket_config import DevBucketConfig
from tests.support.indexing import Row, SmallIndex
from tests.support.kernel_pairs import build_script
from tests.support.node import Node
from tests.support.running import await_stable, connect

ROOT = Path(__file__).resolve().parents[2]
A_NODE = (
    "--set source.url=couchbase://127.0.0.1/b --set source.user=u --set source.password=p "
    "--set index.store=redis://127.0.0.1:1"
)
PARTS_OF_THE_PROGRAM = ("coordinator", "devbucket", "workers")

pytestmark = [
    pytest.mark.packaging,
    pytest.mark.slow,
    pytest.mark.timeout(300),
]


class Installation:
    """An environment with nothing in it but the wheel, with *extras*, and what it asks for."""

    def __init__(self, folder: Path, wheel: Path, extras: str) -> None:
        venv.EnvBuilder(symlinks=True).create(folder)
        self.bin = folder / "bin"
        self.packages = next(folder.glob("lib/python3*/site-packages"))
        pip = [sys.executable, "-m", "pip", "--python", str(self.bin / "python"), "install", "--quiet", "--no-compile"]
        subprocess.run([*pip, f"{wheel}[{extras}]" if extras else str(wheel)], check=True, capture_output=True)

    def run(self, *command: object) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment."""
        program, *arguments = map(str, command)
        return subprocess.run(
            [self.bin / program, *arguments], capture_output=True, text=True, check=False, timeout=120
        )


@pytest.fixture(scope="module")
def library(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    return Installation(tmp_path_factory.mktemp("library"), wheel, "")


@pytest.fixture(scope="module")
def complete(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    return Installation(tmp_path_factory.mktemp("complete"), wheel, "node,dev-bucket,embedded")


@pytest.fixture
def application(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an application with packages named as our parts, current and on PYTHONPATH, with a decoder."""
    for name in PARTS_OF_THE_PROGRAM:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("MINE = True\n")
    decoder = (ROOT / "docs/examples/by_type.py").read_text()
    (tmp_path / "by_type.py").write_text(decoder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


@pytest.fixture
def index(redis_url: str) -> Iterator[SmallIndex]:
    with closing(SmallIndex(redis_url)) as made:
        epoch = made.begin()
        made.write(epoch, [Row("a", 0, 1, "doc-1"), Row("a", 1, 2, "doc-2")])
        made.advance(epoch, {0: 1, 1: 2})
        yield made


def test_the_wheel_puts_nothing_but_our_name_into_site_packages(wheel: Path, library: Installation) -> None:
    names = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name.partition("-")[0] for name in names} == {"channelindex"}
    assert not [name for name in PARTS_OF_THE_PROGRAM if (library.packages / name).exists()]


def test_where_there_is_a_compiler_the_wheel_has_the_kernel_and_uses_it(wheel: Path, library: Installation) -> None:
    done = library.run("python", "-c", "from channelindex import kernel; print(kernel.description())")
    if build_script().missing():
        assert wheel.name.endswith("-py3-none-any.whl")
        assert done.stdout == "python (not built)\n"
    else:
        assert "-cp311-abi3-linux_" in wheel.name
        assert done.stdout == "compiled\n"


@pytest.mark.usefixtures("application")
def test_the_library_reads_in_an_application_with_packages_of_our_names(
    library: Installation, redis_url: str, index: SmallIndex
) -> None:
    code = (
        "import channelindex, coordinator, devbucket, sys, workers\n"
        "assert coordinator.MINE and devbucket.MINE and workers.MINE\n"
        "with channelindex.open_index(*sys.argv[1:]) as index:\n"
        "    print(*sorted(change.id for change in index.changes(['a']).entries))\n"
        "assert coordinator.MINE is sys.modules['coordinator'].MINE\n"
    )
    done = library.run("python", "-W", "error", "-c", code, redis_url, index.name)
    assert (done.stdout, done.stderr) == ("doc-1 doc-2\n", "")


@pytest.mark.usefixtures("application")
def test_commands_that_read_need_no_extra(library: Installation, redis_url: str, index: SmallIndex) -> None:
    settings = ("--set", f"index.store={redis_url}", "--set", f"index.name={index.name}")
    done = library.run("channelindex", "changes", "a", "--json", *settings)
    assert done.returncode == exits.OK, done.stderr
    assert done.stdout.count("doc-") == 2


@pytest.mark.parametrize(
    ("command", "extras"),
    [
        ("top", "cli"),
        (f"run {A_NODE} --set metrics.listen=127.0.0.1:9480", "node"),
        ("devbucket", "dev-bucket"),
        ("load x", "dev-bucket"),
        ("demo", "node,dev-bucket,embedded"),
        ("changes a --set index.store=couchbase://127.0.0.1/b --set index.user=u --set index.password=p", "couchbase"),
    ],
)
def test_a_command_without_its_extra_names_it_in_one_line(library: Installation, command: str, extras: str) -> None:
    done = library.run("channelindex", *command.split())
    assert (done.returncode, done.stdout) == (exits.CONFIG, "")
    (line,) = done.stderr.splitlines()
    assert line.endswith(f"is not installed: pip install 'channelindex[{extras}]'")


def test_play_without_the_changes_feed_names_what_it_needs(complete: Installation) -> None:
    done = complete.run("channelindex", "play")
    assert (done.returncode, done.stdout) == (exits.CONFIG, "")
    (line,) = done.stderr.splitlines()
    assert line.endswith("pip install 'channelindex[node,serve,dev-bucket,embedded]'")


def test_the_library_without_its_extra_raises_an_import_error_that_names_it(library: Installation) -> None:
    code = (
        "import channelindex\n"
        "try: channelindex.open_index('couchbase://127.0.0.1/b')\n"
        "except ImportError as error: print(type(error).__name__, error)\n"
    )
    done = library.run("python", "-c", code)
    assert done.stdout == "ExtraMissing couchbase is not installed: pip install 'channelindex[couchbase]'\n", (
        done.stderr
    )


def test_importing_the_library_loads_no_client(library: Installation) -> None:
    done = library.run("python", "-c", "import channelindex, sys; print(*sys.modules)")
    assert not {"redis", "msgspec", "channelindex.stores"} & set(done.stdout.split())


@pytest.mark.usefixtures("application")
def test_the_demo_runs_from_the_wheel(complete: Installation) -> None:
    done = complete.run("channelindex", "demo", "--json", "--seconds", "2")
    assert done.returncode == exits.OK, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert result["documents"] > 0
    assert (result["missing"], result["extra"], result["different"]) == (0, 0, 0)


def test_a_node_of_the_wheel_indexes_with_the_applications_decoder(
    complete: Installation, application: Path, redis_url: str
) -> None:
    class InstalledNode(Node):
        python = str(complete.bin / "python")

    settings = {"source__decoder": "by_type:make", "index__partitions": 4}
    with DevBucket(DevBucketConfig(n_vbuckets=16)) as bucket, connect(bucket) as client:
        client.store(b"order-1", b'{"type": "order"}')
        with InstalledNode("n1", application, redis_url, bucket, **settings).start() as node:
            await_stable(redis_url, bucket)
            done = complete.run("channelindex", "changes", "type-order", "--json", "--config", node.config)
            assert "order-1" in done.stdout, done.stderr + node.log.read_text()
            assert node.drain() == exits.OK
