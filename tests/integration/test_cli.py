"""The command line as a user meets it: real processes, real exit codes, one line on stderr, no traceback."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from unittest.mock import ANY

import msgspec
import psutil
import pytest
import redis

from channelindex import __version__, blocks, exits
from channelindex.feeds.dcp.auth import Credentials
from channelindex.feeds.dcp.connstr import parse_source_url
from channelindex.feeds.dcp.kv import KvClient
from channelindex.model import REMOVED, Checkpoint, Entry, IndexMeta
from channelindex.settings import IndexSettings
from channelindex.stores import open_owner, open_writer
from channelindex.stores.base import ChannelAppend
from channelindex.stores.redis.keys import Keys
from devbucket.bucket_config import DevBucketConfig
from devbucket.embedded_redis import EmbeddedRedis
from devbucket.process import DevBucket
from tests.support.node import until
from tests.support.running import cli
from workers.cli import COMMANDS

NOWHERE = "redis://127.0.0.1:1/0"
SOURCE = "couchbase://127.0.0.1:1/docs"


def channelindex(
    *arguments: str, cwd: Path, environ: dict[str, str] | None = None, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    if not stdin:
        return cli(*arguments, cwd=cwd, environ=environment(environ))
    return subprocess.run(
        command(*arguments),
        cwd=cwd,
        env=environment(environ),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "channelindex", *arguments]


def environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CHANNELINDEX_")}
    return kept | (extra or {})


def fails(code: int, *arguments: str, cwd: Path, environ: dict[str, str] | None = None) -> str:
    """Run a command that must fail with *code*; its one line on stderr, without the program's name."""
    done = channelindex(*arguments, cwd=cwd, environ=environ)
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("channelindex: ")
    assert done.returncode == code, done.stderr
    return lines[0].removeprefix("channelindex: ")


@pytest.fixture
def index_url(redis_url: str) -> str:
    """The URL of a small index: channel A has five documents of vbucket 1, of which the last one left it."""
    with (
        closing(open_owner(IndexSettings("channels", redis_url))) as owner,
        closing(open_writer(IndexSettings("channels", redis_url))) as writer,
    ):
        owner.create_or_check(IndexMeta(blocks.FORMAT_VERSION, 64, 8, "source", "index"))
        epoch = owner.next_epoch()
        owner.begin(0, epoch, "n1")
        flags = (0, 0, 0, 0, REMOVED)
        entries = (Entry(1, number + 1, b"doc%d" % number, "1-abc", flags[number]) for number in range(5))
        packed = b"".join(map(blocks.pack_entry, entries))
        writer.write([ChannelAppend("A", "group", epoch, packed)])
        owner.advance(epoch, {0: {1: Checkpoint(1, 5, 5, 5)}})
    return redis_url


@pytest.fixture(scope="module")
def guarded_url() -> Iterator[str]:
    """A Redis that asks for a password, addressed with a wrong one."""
    with EmbeddedRedis() as server:
        with redis.Redis.from_url(server.url) as client:
            client.config_set("requirepass", "hunter2")
        yield server.url.replace("unix://", "unix://:hunter3@")


@pytest.mark.real_start
def test_help_of_the_program_and_of_each_command_has_an_example(tmp_path: Path) -> None:
    done = channelindex("--help", cwd=tmp_path)
    assert done.returncode == exits.OK
    for name in COMMANDS:
        assert name in done.stdout
    done = channelindex("changes", "--help", cwd=tmp_path)
    assert "channelindex changes orders" in done.stdout
    assert channelindex("--version", cwd=tmp_path).stdout == f"channelindex {__version__}\n"


@pytest.mark.real_start
def test_an_unknown_command_is_met_with_the_nearest_one(tmp_path: Path) -> None:
    assert "did you mean changes?" in fails(exits.USAGE, "chanegs", cwd=tmp_path)
    assert "there are run, changes" in fails(exits.USAGE, "xyzzy", cwd=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "COMMAND"),
        (("changes",), "CHANNEL"),
        (("changes", "A", "--limit", "0"), "'0' is not a whole number from 1 on"),
        (("config", "show", "--set", "nonsense"), "'nonsense' is not section.key=value"),
        (("status", "--frobnicate"), "unknown argument --frobnicate (see channelindex status --help)"),
        (("release", "n1"), "'n1' is not a whole number from 0 on"),
        (("quarantine",), "required: action (see"),
        (("devbucket", "ctl", "--admin", "1"), "required: OPERATION (see"),
    ],
)
def test_wrong_usage_is_one_line(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    assert says in fails(exits.USAGE, *arguments, cwd=tmp_path)


def test_a_missing_configuration_names_the_keys_and_how_to_give_them(tmp_path: Path) -> None:
    message = fails(exits.CONFIG, "run", cwd=tmp_path)
    assert "source.url is not set" in message
    assert "CHANNELINDEX_INDEX_STORE" in message
    assert "No such file" in fails(exits.CONFIG, "status", "--config", "absent.toml", cwd=tmp_path)


def test_an_unknown_key_in_the_default_file_is_named_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "channelindex.toml").write_text(f'[index]\nstore = "{NOWHERE}"\npartitons = 8\n', encoding="utf-8")
    message = fails(exits.CONFIG, "status", cwd=tmp_path)
    assert message == "index.partitons (set in channelindex.toml): unknown key; did you mean index.partitions?"


def test_an_unreachable_store_is_one_line_that_names_setting_and_address(tmp_path: Path) -> None:
    message = fails(exits.STORE, "changes", "A", cwd=tmp_path, environ={"CHANNELINDEX_INDEX_STORE": NOWHERE})
    assert "index.store" in message
    assert "127.0.0.1:1" in message


def test_unreachable_coordination_has_a_code_of_its_own(tmp_path: Path, index_url: str) -> None:
    settings = ("--set", f"index.store={index_url}", "--set", f"coordination.redis={NOWHERE}")
    assert "coordination.redis" in fails(exits.COORDINATION, "status", *settings, cwd=tmp_path)


def test_a_node_that_its_bucket_refuses_ends_with_one_line(tmp_path: Path, redis_url: str) -> None:
    with DevBucket(DevBucketConfig(n_vbuckets=16)) as bucket:
        settings = ("--set", f"index.store={redis_url}", "--set", f"source.url={bucket.url}")
        assert "source.user" in fails(exits.AUTH, "run", *settings, cwd=tmp_path)


def test_partitions_that_do_not_fit_the_bucket_are_refused_with_a_number_that_does(
    tmp_path: Path, redis_url: str
) -> None:
    with DevBucket(DevBucketConfig(n_vbuckets=48)) as bucket:
        source = {"CHANNELINDEX_SOURCE_USER": bucket.user, "CHANNELINDEX_SOURCE_PASSWORD": bucket.password}
        settings = ("--set", f"index.store={redis_url}", "--set", f"source.url={bucket.url}")
        message = fails(exits.CONFIG, "run", *settings, cwd=tmp_path, environ=source)
    assert message == "index.partitions = 64 does not divide the 48 vbuckets of the bucket: set it to 16"


def test_a_configuration_can_be_checked_by_whom_its_passwords_are_kept_from(tmp_path: Path) -> None:
    settings = (
        *("--set", f"source.url={SOURCE}", "--set", f"index.store={NOWHERE}"),
        *("--set", f"source.password_file={tmp_path}/absent"),
    )
    done = channelindex("config", "check", *settings, cwd=tmp_path)
    assert (done.returncode, "source.password_file" in done.stdout) == (exits.CONFIG, True)
    done = channelindex("config", "check", "--no-passwords", *settings, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (exits.OK, "the configuration is valid\n")


def test_a_wrong_password_is_reported_without_showing_it(tmp_path: Path, guarded_url: str) -> None:
    message = fails(exits.AUTH, "status", "--set", f"index.store={guarded_url}", cwd=tmp_path)
    assert "hunter" not in message


def test_an_index_of_another_format_is_refused(tmp_path: Path, index_url: str) -> None:
    with redis.Redis.from_url(index_url) as client:
        key = Keys("channels").meta
        meta = json.loads(client.get(key) or b"")
        client.set(key, json.dumps(meta | {"format": 99}))
    message = fails(exits.MISMATCH, "changes", "A", "--set", f"index.store={index_url}", cwd=tmp_path)
    assert "99" in message


def test_a_missing_index_and_a_garbled_token_have_codes_of_their_own(tmp_path: Path, index_url: str) -> None:
    store = ("--set", f"index.store={index_url}")
    assert "'other'" in fails(exits.MISSING, "status", "--set", "index.name=other", *store, cwd=tmp_path)
    assert "garbled" in fails(exits.TOKEN, "changes", "A", "--since", "x", *store, cwd=tmp_path)


def test_changes_as_json_lines_end_with_the_token_that_goes_on(tmp_path: Path, index_url: str) -> None:
    store = ("--json", "--set", f"index.store={index_url}")
    first = channelindex("changes", "A", "--limit", "3", *store, cwd=tmp_path).stdout.splitlines()
    *changes, end = map(json.loads, first)
    assert [change["id"] for change in changes] == ["doc0", "doc1", "doc2"]
    assert end["pending"] == 2
    rest = channelindex("changes", "A", "--since", end["since"], *store, cwd=tmp_path).stdout.splitlines()
    *changes, end = map(json.loads, rest)
    assert [(change["id"], change["removed"]) for change in changes] == [("doc3", False), ("doc4", True)]
    assert end["pending"] == 0


def test_follow_ends_after_the_limit(tmp_path: Path, index_url: str) -> None:
    settings = ("--set", f"index.store={index_url}")
    done = channelindex("changes", "A", "--follow", "--limit", "4", "--json", *settings, cwd=tmp_path)
    assert done.returncode == exits.OK
    assert sum("id" in json.loads(line) for line in done.stdout.splitlines()) == 4


def test_ctrl_c_ends_a_follower_quietly(tmp_path: Path, index_url: str) -> None:
    arguments = ("changes", "A", "--follow", "--json", "--set", f"index.store={index_url}")
    with subprocess.Popen(
        command(*arguments), cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as follower:
        assert follower.stdout
        assert follower.stderr
        assert json.loads(follower.stdout.readline())["id"] == "doc0"
        follower.send_signal(signal.SIGINT)
        assert follower.wait(timeout=30) == exits.INTERRUPTED
        assert follower.stderr.read() == ""


def test_ctrl_c_makes_a_follower_print_its_token(tmp_path: Path, index_url: str) -> None:
    store = ("--set", f"index.store={index_url}")
    with subprocess.Popen(
        command("changes", "A", "--follow", *store), cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True
    ) as follower:
        assert follower.stdout
        assert any("doc4" in line for line in iter(follower.stdout.readline, ""))
        until(lambda: psutil.Process(follower.pid).status() == psutil.STATUS_SLEEPING, "the page to be printed whole")
        follower.send_signal(signal.SIGINT)
        *_, last = follower.stdout.read().splitlines()
        assert follower.wait(timeout=30) == exits.INTERRUPTED
    assert last.startswith("continue with --since ")
    rest = channelindex("changes", "A", "--json", "--since", last.split()[-1], *store, cwd=tmp_path).stdout
    assert [set(json.loads(line)) for line in rest.splitlines()] == [{"since", "pending"}]


def test_a_reader_that_has_seen_enough_gets_no_complaint(tmp_path: Path, index_url: str) -> None:
    arguments = ("changes", "A", "--follow", "--json", "--set", f"index.store={index_url}")
    with subprocess.Popen(
        command(*arguments), cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as follower:
        assert follower.stdout
        assert follower.stderr
        follower.stdout.readline()
        follower.stdout.close()
        with (
            closing(open_owner(IndexSettings("channels", index_url))) as owner,
            closing(open_writer(IndexSettings("channels", index_url))) as writer,
        ):
            epoch = owner.next_epoch()
            owner.begin(0, epoch, "n1")
            entry = blocks.pack_entry(Entry(1, 6, b"doc6", "1-abc", 0))
            writer.write([ChannelAppend("A", "group", epoch, entry)])
            owner.advance(epoch, {0: {1: Checkpoint(1, 6, 6, 6)}})
        assert follower.wait(timeout=30) == exits.OK
        assert follower.stderr.read() == ""


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_standard_files_that_are_closed_end_no_command(tmp_path: Path, index_url: str, closed: str) -> None:
    shown = " ".join(map(shlex.quote, command("changes", "A", "--set", f"index.store={index_url}")))
    done = subprocess.run(
        ["sh", "-c", f"{shown} {closed}"], cwd=tmp_path, env=environment(), check=False, capture_output=True, text=True
    )
    assert done.returncode == exits.OK
    assert done.stderr == ""
    assert ("doc4" in done.stdout) == ("1>" not in closed)


@pytest.mark.parametrize(
    ("arguments", "code"), [(("top", "--once", "--interval", "0.1"), exits.OK), (("frobnicate",), exits.USAGE)]
)
def test_readers_who_left_both_outputs_get_no_code_but_the_commands_own(
    tmp_path: Path, index_url: str, arguments: tuple[str, ...], code: int
) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    settings = {"CHANNELINDEX_INDEX_STORE": index_url}
    done = subprocess.run(
        command(*arguments), cwd=tmp_path, env=environment(settings), check=False, stdout=write_end, stderr=write_end
    )
    os.close(write_end)
    assert done.returncode == code


@pytest.mark.parametrize("order", ["drain n1", "rebalance", "release 0", "scale --feed-workers 2"])
def test_an_order_that_no_node_would_follow_is_refused(tmp_path: Path, index_url: str, order: str) -> None:
    message = fails(exits.MISSING, *order.split(), "--set", f"index.store={index_url}", cwd=tmp_path)
    assert "no node is running" in message


def test_a_channel_of_no_changes_is_reported_as_such(tmp_path: Path, index_url: str) -> None:
    done = channelindex("changes", "nobody", "--set", f"index.store={index_url}", cwd=tmp_path)
    assert done.stdout.startswith("no changes; continue with --since ")


def test_the_private_redis_says_why_it_did_not_start(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = fails(exits.COORDINATION, "redis", "--port", str(port), cwd=tmp_path)
    assert message.startswith(f"redis-server did not start: Failed listening on port {port}")


def test_tables_fit_a_wide_and_a_narrow_terminal(tmp_path: Path, index_url: str) -> None:
    store = ("--set", f"index.store={index_url}")
    wide = channelindex("changes", "A", *store, cwd=tmp_path).stdout.splitlines()
    assert wide[0].split() == ["document", "revision", "change", "vbucket", "seqno", "channels"]
    assert wide[5].split() == ["doc4", "1-abc", "removed", "1", "5"]
    narrow = channelindex("changes", "A", *store, cwd=tmp_path, environ={"COLUMNS": "30"}).stdout.splitlines()
    assert narrow[:2] == ["document: doc0", "revision: 1-abc"]


def test_status_tells_index_nodes_and_partitions_without_owner(tmp_path: Path, index_url: str) -> None:
    store = ("--set", f"index.store={index_url}")
    state = json.loads(channelindex("status", "--json", *store, cwd=tmp_path).stdout)
    assert state["index"]["stable"] == 5
    assert state["unowned"] == list(range(8))
    assert [row["epoch"] > 0 for row in state["partitions"]] == [True, *[False] * 7]
    assert "partitions without an owner: 0-7" in channelindex("status", *store, cwd=tmp_path).stdout


def test_config_check_prints_every_problem_and_show_where_values_come_from(tmp_path: Path) -> None:
    (tmp_path / "channelindex.toml").write_text("[index]\npartitions = 7\n", encoding="utf-8")
    done = channelindex("config", "check", cwd=tmp_path)
    assert done.returncode == exits.CONFIG
    assert len(done.stdout.splitlines()) == 3
    assert done.stderr == "channelindex: 3 problems in the configuration\n"
    (tmp_path / "channelindex.toml").unlink()
    environ = {"CHANNELINDEX_SOURCE_PASSWORD": "hunter2", "CHANNELINDEX_INDEX_PARTITIONS": "8"}
    done = channelindex("config", "show", "--json", cwd=tmp_path, environ=environ)
    assert json.loads(done.stdout)["index.partitions"] == {
        "value": 8,
        "origin": "environment CHANNELINDEX_INDEX_PARTITIONS",
    }
    assert "hunter2" not in done.stdout


def test_a_file_is_loaded_once_and_a_malformed_line_is_reported_before_anything_is_written(tmp_path: Path) -> None:
    good = '{"id":"a","rev":"1-a","channels":["x"]}\n{"id":"b","rev":"1-b","channels":[]}\n'
    (tmp_path / "good.jsonl").write_text(good, encoding="utf-8")
    (tmp_path / "bad.jsonl").write_text(good + '{"id":\n', encoding="utf-8")
    with DevBucket(DevBucketConfig(n_vbuckets=16)) as bucket:
        user = {"CHANNELINDEX_SOURCE_USER": bucket.user, "CHANNELINDEX_SOURCE_PASSWORD": bucket.password}
        to = ("--bucket", bucket.url, "--json")
        assert "bad.jsonl:3: " in fails(exits.INPUT, "load", "bad.jsonl", *to, cwd=tmp_path, environ=user)
        for n_saved in (2, 0):
            done = channelindex("load", "good.jsonl", *to, cwd=tmp_path, environ=user)
            assert json.loads(done.stdout) == {"revisions": 2, "saved": n_saved, "seconds": ANY}
        wrong = user | {"CHANNELINDEX_SOURCE_PASSWORD": "hunter3"}
        message = fails(exits.AUTH, "load", "good.jsonl", *to, cwd=tmp_path, environ=wrong)
        assert "hunter3" not in message
    message = fails(exits.INPUT, "load", "absent.jsonl", *to, cwd=tmp_path)
    assert message == "absent.jsonl: cannot be read: No such file or directory"
    fails(exits.SOURCE, "load", "good.jsonl", "--bucket", SOURCE, cwd=tmp_path)


def test_revisions_are_loaded_from_a_pipe_and_a_fifo(tmp_path: Path) -> None:
    lines = "".join(f'{{"id":"d{n}","rev":"1-a","channels":["x"]}}\n' for n in range(600))
    with DevBucket(DevBucketConfig(n_vbuckets=16)) as bucket:
        user = {"CHANNELINDEX_SOURCE_USER": bucket.user, "CHANNELINDEX_SOURCE_PASSWORD": bucket.password}
        arguments = ("load", "--bucket", bucket.url, "--json")
        done = channelindex(*arguments, "-", cwd=tmp_path, environ=user, stdin=lines)
        assert json.loads(done.stdout) == {"revisions": 600, "saved": 600, "seconds": ANY}
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        feeder = threading.Thread(target=fifo.write_text, args=(lines,))
        feeder.start()
        done = channelindex(*arguments, str(fifo), cwd=tmp_path, environ=user)
        feeder.join()
        assert json.loads(done.stdout) == {"revisions": 600, "saved": 0, "seconds": ANY}


def test_a_dev_bucket_on_ipv6_prints_a_url_that_works(tmp_path: Path) -> None:
    arguments = ("devbucket", "--host", "::1", "--port", "0", "--vbuckets", "16")
    (tmp_path / "one.jsonl").write_text('{"id":"a","rev":"1-a","channels":["x"]}\n', encoding="utf-8")
    with subprocess.Popen(
        command(*arguments), cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout
        url = server.stdout.readline().strip()
        user = {"CHANNELINDEX_SOURCE_USER": "Administrator", "CHANNELINDEX_SOURCE_PASSWORD": "password"}
        done = channelindex("load", "one.jsonl", "--bucket", url, "--json", cwd=tmp_path, environ=user)
        server.terminate()
        assert json.loads(done.stdout)["saved"] == 1, done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_output_that_is_not_utf_8_ends_no_command(tmp_path: Path, index_url: str, encoding: str) -> None:
    arguments = ("--set", f"index.store={index_url}", "--set", "index.name=channels")
    done = channelindex("changes", "Ä-日本", *arguments, cwd=tmp_path, environ={"PYTHONIOENCODING": encoding})
    assert (done.returncode, "internal error" in done.stderr) == (exits.OK, False)
    message = fails(exits.USAGE, "日本", cwd=tmp_path, environ={"PYTHONIOENCODING": encoding})
    assert "unknown command" in message


def test_sigterm_ends_process_1_of_a_container_while_it_still_starts() -> None:
    code = (
        "import os, signal, sys, time; os.getpid = lambda: 1\n"
        "from channelindex.__main__ import main\n"
        "from workers import cli\n"
        "cli.parse = lambda argv: (print('starting', flush=True), time.sleep(60))\n"
        "sys.exit(main())"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "starting\n"
        process.terminate()
        assert process.wait(timeout=30) == 128 + signal.SIGTERM


def test_verify_tells_an_index_that_never_caught_up_by_its_exit_code(tmp_path: Path, redis_url: str) -> None:
    (tmp_path / "docs.jsonl").write_text('{"id":"a","rev":"1-a","channels":["x"]}\n', encoding="utf-8")
    with DevBucket(DevBucketConfig(n_vbuckets=16)) as bucket:
        settings = {
            "CHANNELINDEX_SOURCE_URL": bucket.url,
            "CHANNELINDEX_SOURCE_USER": bucket.user,
            "CHANNELINDEX_SOURCE_PASSWORD": bucket.password,
            "CHANNELINDEX_INDEX_STORE": redis_url,
        }
        channelindex("load", "docs.jsonl", cwd=tmp_path, environ=settings)
        assert "'channels'" in fails(exits.MISSING, "verify", cwd=tmp_path, environ=settings)
        with KvClient(parse_source_url(bucket.url), Credentials(bucket.user, bucket.password)) as client:
            meta = IndexMeta(blocks.FORMAT_VERSION, 16, 8, client.source.uuid, "index")
        with closing(open_owner(IndexSettings("channels", redis_url))) as owner:
            owner.create_or_check(meta)
        done = channelindex("verify", "--timeout", "0.1", "--json", cwd=tmp_path, environ=settings)
        assert done.returncode == exits.DIFFERENCES
        report = json.loads(done.stdout)
        assert (report["ok"], report["entries"]) == (False, 0)
        assert report["behind"] >= 1
        with closing(open_owner(IndexSettings("other", redis_url))) as owner:
            owner.create_or_check(msgspec.structs.replace(meta, source_uuid="another"))
        other = settings | {"CHANNELINDEX_INDEX_NAME": "other"}
        assert "another" in fails(exits.MISMATCH, "verify", cwd=tmp_path, environ=other)


def test_the_demo_indexes_live_survives_a_kill_and_verifies(tmp_path: Path) -> None:
    done = channelindex("demo", "--seconds", "4", "--json", cwd=tmp_path)
    assert done.returncode == exits.OK, done.stderr
    result = json.loads(done.stdout)
    assert result["revisions"] > 0
    assert (result["missing"], result["extra"], result["different"]) == (0, 0, 0)


def test_the_dev_bucket_prints_its_url_first_and_stops_when_asked(tmp_path: Path) -> None:
    arguments = ("devbucket", "--port", "0", "--vbuckets", "16")
    with subprocess.Popen(
        command(*arguments), cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout
        assert parse_source_url(server.stdout.readline().strip()).bucket == "default"
        server.terminate()
        assert server.wait(timeout=30) == exits.OK
    assert "loopback" in fails(exits.CONFIG, "devbucket", "--host", "0.0.0.0", cwd=tmp_path)


def test_debug_adds_the_traceback(tmp_path: Path) -> None:
    done = channelindex("status", "--debug", "--set", f"index.store={NOWHERE}", cwd=tmp_path)
    assert done.returncode == exits.STORE
    assert done.stderr.startswith("Traceback")
    assert done.stderr.splitlines()[-1].startswith("channelindex: index.store")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_demo_that_is_ended_leaves_no_process_behind(tmp_path, signum):
    demo = subprocess.Popen(
        command("demo"), cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until(lambda: len(psutil.Process(demo.pid).children(recursive=True)) > 5, "the demo to run its processes")
    family = psutil.Process(demo.pid).children(recursive=True)
    demo.send_signal(signum)
    assert demo.wait(60) == (exits.INTERRUPTED if signum == signal.SIGTERM else -signum)
    _, alive = psutil.wait_procs(family, timeout=60)
    assert alive == []


def test_a_demo_without_revisions_is_refused(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    assert "no revision" in fails(exits.INPUT, "demo", "--docs", "empty.jsonl", cwd=tmp_path)


def test_a_node_without_its_leases_redis_ends_with_one_line(tmp_path, redis_url):
    with DevBucket(DevBucketConfig(n_vbuckets=64)) as bucket:
        told = fails(
            exits.COORDINATION,
            "run",
            *_set({**_places(bucket, redis_url), "coordination.redis": NOWHERE}),
            cwd=tmp_path,
        )
    assert "coordination.redis" in told


def test_following_a_store_that_is_not_there_is_an_error(tmp_path):
    assert "index.store" in fails(
        exits.STORE, "changes", "a", "--follow", *_set({"index.store": NOWHERE}), cwd=tmp_path
    )


def test_verify_against_another_bucket_is_refused(tmp_path, index_url):
    with DevBucket(DevBucketConfig(n_vbuckets=64)) as bucket:
        told = fails(
            exits.MISMATCH,
            "verify",
            *_set(_places(bucket, index_url)),
            cwd=tmp_path,
        )
    assert "UUID" in told


def _places(bucket: DevBucket, store_url: str) -> dict[str, str]:
    return {
        "source.url": bucket.url,
        "source.user": bucket.user,
        "source.password": bucket.password,
        "index.store": store_url,
    }


def _set(settings: dict[str, str]) -> list[str]:
    return [argument for key, value in settings.items() for argument in ("--set", f"{key}={value}")]
