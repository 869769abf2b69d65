"""What `--json` prints has every field that docs/json.md names, on a running node."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from channelindex import exits
from devbucket.bucket_config import DevBucketConfig
from devbucket.process import DevBucket
from devbucket.sync_gateway.layouts import InlineLayout
from devbucket.sync_gateway.loader import Loader
from devbucket.sync_gateway.revisions import Revision
from tests.support.node import Node
from tests.support.running import await_stable, connect
from workers.cli import COMMANDS, build_parser, main

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "json.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
KINDS = ("page", "list", "retry", "partition", "clock", "block", "show", "check")
CHANNELS = ("a", "b")


def documented(command: str, kind: str) -> list[str]:
    """The paths that the page names for *command*: those of *kind*, and those of every kind."""
    rows = re.findall(r"^\| (`.*?) \| (.*) \|$", SECTIONS[command], re.MULTILINE)
    others = tuple(f"({other})" for other in KINDS if other not in (kind, "page"))
    wanted = [paths for paths, text in rows if not text.startswith(others)]
    assert wanted
    return [path for paths in wanted for path in re.findall(r"`([^`]+)`", paths)]


def reach(value: Any, path: str) -> None:
    """Go down *path*; fail where a step of it is not there. An empty list or a null has nothing below."""
    if not path or value is None:
        return
    head, rest = re.match(r"(\[\]|\{\}|\.?\w+)(.*)", path, re.DOTALL).groups()  # type: ignore[union-attr]
    if head == "[]":
        assert isinstance(value, list), path
        for each in value:
            reach(each, rest)
    elif head == "{}":
        assert isinstance(value, dict), path
        for each in value.values():
            reach(each, rest)
    else:
        assert head.lstrip(".") in value, f"{path} of {sorted(value)}"
        reach(value[head.lstrip(".")], rest)


@pytest.fixture(scope="module")
def config(redis_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The configuration of a node that runs, with some documents and one that cannot be decoded."""
    folder = tmp_path_factory.mktemp("json")
    with DevBucket(DevBucketConfig(n_vbuckets=16)) as bucket, connect(bucket) as client:
        Loader(client, InlineLayout()).load(Revision(f"doc-{n}", f"1-{n:032x}", CHANNELS) for n in range(20))
        client.store(b"broken", b'{"_sync":{"rev":5}}')
        settings = {"index__partitions": 4, "index__name": "json"}
        with Node("n1", folder, redis_server.url, bucket, **settings).start() as node:
            await_stable(redis_server.url, bucket, "json")
            yield node.config


COMMAND_LINES = [
    ("changes a --limit 3", ""),
    ("status", ""),
    ("nodes", ""),
    ("partitions", ""),
    ("events", ""),
    ("drain n1", ""),
    ("undrain n1", ""),
    ("release 1", ""),
    ("rebalance", ""),
    ("scale --feed-workers 1", ""),
    ("rewind --partition 1 --to BEGINNING --yes", ""),
    ("rebuild --yes", ""),
    ("quarantine list", "list"),
    ("quarantine retry --all --yes", "retry"),
    ("repair --yes", ""),
    ("verify", ""),
    ("inspect partition 1", "partition"),
    ("inspect clock a", "clock"),
    ("inspect block {block}", "block"),
    ("config show", "show"),
    ("config check", "check"),
    ("compare --left {store} --right {store}?db=9", ""),
    ("load {folder}/more.jsonl", ""),
    ("tune --cores 2 --documents 20", ""),
    ("compact --dry-run", ""),
    ("token list --file {folder}/tokens", ""),
]


@pytest.mark.slow
def test_every_command_prints_what_the_page_names(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    block = store = ""
    folder = config.parent
    (folder / "more.jsonl").write_text('{"id": "more", "rev": "1-a", "channels": ["a"]}\n')
    assert main(["token", "new", "shop", "--file", f"{folder}/tokens", "--channels", "a"]) == exits.OK
    capsys.readouterr()
    for line, kind in COMMAND_LINES:
        arguments = line.format(block=block, store=store, folder=folder).split()
        code = main([*arguments, "--json", *([] if "--file" in arguments else ["--config", str(config)])])
        out, err = capsys.readouterr()
        assert code in (exits.OK, exits.DIFFERENCES), f"{line}: {err}"
        values = [json.loads(text) for text in out.splitlines()]
        assert values, line
        for path in documented(arguments[0], kind):
            lines = values if arguments[0] == "changes" else values[:1]
            in_page = path in ("since", "pending")
            for value in lines:
                if arguments[0] != "changes" or in_page == ("since" in value):
                    reach(value, path)
        if line == "inspect clock a":
            block = values[0]["groups"][0]["active_block"]
        if line == "config show":
            store = values[0]["index.store"]["value"]


def test_size_needs_no_system(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["size", "--changes", "1000", "--rate", "10", "--channels", "5", "--json"]) == exits.OK
    value = json.loads(capsys.readouterr().out)
    for path in documented("size", ""):
        reach(value, path)


def test_every_command_with_json_has_its_section() -> None:
    _, parsers = build_parser(COMMANDS)
    with_json = {name for name, parser in parsers.items() if "--json" in parser._option_string_actions}
    assert with_json == SECTIONS.keys()
    tried = {line.split()[0] for line, _ in COMMAND_LINES} | {"size"}
    assert with_json - tried == {"demo"}, "it has a test of its own"
