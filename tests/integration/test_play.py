"""`channelindex play` and `redis`, and what README says to do with them, word for word."""

import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis

from channelindex import exits
from tests.support.node import until
from tests.support.running import cli
from tests.support.terminal import Terminal

ROOT = Path(__file__).resolve().parents[2]
EXPECTED = {"top": r"play-2 +running", "changes": "orders", "drain": "drained", "undrain": "", "verify": "0 missing"}
"""What each line of README has to print, by command."""
CTRL_C = "\x03"


def blocks_of_readme(section: str) -> list[list[str]]:
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return [block.splitlines() for block in re.findall(r"```\n(.*?)```", text, re.DOTALL)]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder like a checkout after `make demo`: Makefile and environment, made a moment ago."""
    (tmp_path / "Makefile").symlink_to(ROOT / "Makefile")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    program = tmp_path / ".venv" / "bin" / "channelindex"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!{sys.executable}\nimport sys\nfrom channelindex.__main__ import main\nsys.exit(main())\n")
    program.chmod(0o755)
    (tmp_path / ".venv" / ".installed-for-demo").touch()
    return tmp_path


@pytest.mark.slow
def test_what_readme_says_to_try_works_word_for_word(checkout: Path) -> None:
    (begin,), lines = blocks_of_readme("Try it without a cluster")
    assert [line.split()[1] for line in lines] == list(EXPECTED)
    with Terminal(begin, checkout, columns=160) as play:
        play.wait_for("Ctrl-C ends it")
        for line in lines:
            command = line.split()[1]
            with Terminal(line, checkout) as terminal:
                terminal.wait_for(EXPECTED[command])
                if command == "top":
                    terminal.press("s")
                    terminal.wait_for("by cpu")
                    terminal.press("q")
                if command == "changes":
                    terminal.press(CTRL_C)
                code = terminal.wait()
            assert code == (exits.INTERRUPTED if command == "changes" else exits.OK), terminal.text
        printed = re.findall(r"^  (\.venv/bin/channelindex .*?) +# ", play.text, re.MULTILINE)
        assert len(printed) == 5
        (failover,) = [line for line in printed if "failover" in line]
        assert subprocess.run(failover, shell=True, cwd=checkout, timeout=60, check=False).returncode == exits.OK
        (url,) = re.findall(r"curl -N '(.*?)'", play.text)
        until(lambda: b'"seq"' in urllib.request.urlopen(url, timeout=60).readline(), "a row of the feed over HTTP")
        play.press(CTRL_C)
        play.wait()
    assert (checkout / ".play" / "bucket.sqlite").exists()


@pytest.mark.slow
def test_a_demo_that_stays_keeps_its_page_open(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "channelindex", "demo", "--seconds", "2", "--stay"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as demo:
        try:
            assert demo.stdout is not None
            lines: list[str] = []
            while not (addresses := re.findall(r"^  (http://\S+/) ", lines[-1] if lines else "")):
                lines.append(demo.stdout.readline())
                assert lines[-1], lines
            assert any("0 missing, 0 extra, 0 different" in line for line in lines)
            asked = urllib.request.Request(addresses[0], headers={"Accept": "text/html"})

            def page() -> bytes:
                try:
                    content: bytes = urllib.request.urlopen(asked, timeout=60).read()
                except urllib.error.URLError:
                    return b""
                return content

            until(lambda: b'role="gridcell"' in page(), "the page to be there")
            family = psutil.Process(demo.pid).children(recursive=True)
            demo.send_signal(signal.SIGINT)
            assert demo.wait(60) == exits.OK
            _, alive = psutil.wait_procs(family, timeout=60)
            assert not alive
        finally:
            demo.kill()


class Play:
    """`channelindex play` on *folder*, in the background."""

    def __init__(self, folder: Path) -> None:
        self.config = folder / "channelindex.toml"
        command = [sys.executable, "-m", "channelindex", "play", "--dir", str(folder), "--rate", "50"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def wait_until_ready(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith("Ctrl-C"):
                return
        raise AssertionError(self.process.stderr and self.process.stderr.read())

    def end(self) -> int:
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(family, timeout=60)
        assert not alive
        self.process.communicate(timeout=60)
        return self.process.returncode

    def documents(self) -> set[str]:
        done = cli("changes", "*", "--json", "--config", self.config)
        return set(re.findall(r'"id":"([^"]+)"', done.stdout))

    def node(self, name: str) -> list[psutil.Process]:
        running = [child for child in psutil.Process(self.process.pid).children() if not _has_ended(child)]
        return [child for child in running if f"node.name={name}" in child.cmdline()]


def _has_ended(process: psutil.Process) -> bool:
    try:
        return not process.cmdline()
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def plays(tmp_path: Path) -> Iterator[list[Play]]:
    """What is put in here is killed at the end."""
    made: list[Play] = []
    yield made
    for play in made:
        if play.process.poll() is None:
            play.process.kill()
            play.process.communicate(timeout=60)


@pytest.mark.slow
def test_a_kept_playground_has_its_documents_next_time_and_what_was_killed_comes_back(
    tmp_path: Path, plays: list[Play]
) -> None:
    folder = tmp_path / "a folder whose name is " / ("long" * 25)
    first = Play(folder)
    plays.append(first)
    first.wait_until_ready()
    until(first.documents, "documents in the index")
    before = first.documents()
    in_use = cli("play", "--dir", folder)
    assert (in_use.returncode, in_use.stderr.count("\n")) == (exits.INPUT, 1)
    (killed,) = first.node("play-1")
    killed.kill()
    until(lambda: {node.pid for node in first.node("play-1")} - {killed.pid}, "the killed node to be started again")
    (url,) = re.findall(r'store = "(.*?)"', first.config.read_text())
    with redis.Redis.from_url(url) as client:
        psutil.Process(client.info("server")["process_id"]).kill()
    assert first.process.stderr
    assert any("the Redis ended" in line for line in first.process.stderr)
    until(lambda: first.documents() >= before, "the Redis to be started again, with the index")
    assert first.end() == exits.OK
    second = Play(folder)
    plays.append(second)
    second.wait_until_ready()
    until(lambda: second.documents() - before, "new documents beside the old ones")
    assert before <= second.documents()
    assert second.end() == exits.OK


def test_a_private_redis_serves_until_it_is_stopped_and_keeps_its_data(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "channelindex", "redis", "--port", "0", "--dir", str(tmp_path / "data")]
    for expected in (None, b"value"):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout
            with redis.Redis.from_url(server.stdout.readline().strip()) as client:
                assert client.get("key") == expected
                client.set("key", "value")
                (process,) = psutil.Process(server.pid).children()
            server.terminate()
            assert server.wait(60) == exits.OK
        assert not process.is_running()


@pytest.mark.parametrize("command", ["play", "redis"])
def test_a_file_in_place_of_the_folder_is_named_in_one_line(tmp_path: Path, command: str) -> None:
    (tmp_path / "file").touch()
    done = cli(command, "--dir", tmp_path / "file")
    assert done.returncode == exits.INPUT
    assert (
        done.stderr
        == f"channelindex: {tmp_path / 'file'} is no folder: name one, or a path where there is nothing yet\n"
    )


def test_a_private_redis_whose_port_is_taken_says_so_in_one_line(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "channelindex", "redis", "--port", "0"], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout
        port = server.stdout.readline().rpartition(":")[2].partition("/")[0]
        done = cli("redis", "--port", port)
        server.terminate()
    assert done.returncode == exits.COORDINATION
    assert done.stderr.count("\n") == 1
    assert f"port {port}" in done.stderr


def test_a_demo_on_a_terminal_ends_with_a_picture_of_the_end(tmp_path: Path) -> None:
    with Terminal(f"{sys.executable} -m channelindex demo --seconds 2", tmp_path, {"PYTHONPATH": str(ROOT)}) as demo:
        code = demo.wait()
    assert code == exits.OK, demo.text
    last_picture = demo.text[demo.text.rindex("revisions written") :]
    assert "lag 0 · in flight 0" in last_picture
    assert "0 missing, 0 extra, 0 different" in last_picture
    assert last_picture.index("verifying") > last_picture.index("batch_writer 1")
    assert re.search(r"Now try .*\n\n  \S+ -m channelindex play\n", last_picture)
    assert os.path.basename(sys.executable) in last_picture  # noqa: PTH119 a word, not a file
