"""The page of the service in a real browser, while a node is killed."""

import json
import shlex
import subprocess
import urllib.parse
from pathlib import Path
from typing import Any

import pytest

from devbucket.bucket_config import DevBucketConfig
from devbucket.process import DevBucket
from devbucket.sync_gateway.layouts import InlineLayout
from devbucket.sync_gateway.loader import Loader
from devbucket.sync_gateway.revisions import Revision
from tests.support.node import Node, until
from tests.support.npm import CLIENTS, folder_with_packages
from tests.support.programs import program
from tests.support.running import await_stable, cli, connect
from tests.support.served import Service

CHANNEL = '<img src=x onerror="window.hacked=1">\' & team'
DOCUMENT = "<b>doc</b>"


def _chromium() -> str:
    return program("chromium", "chromium-browser", "google-chrome", package="chromium")


class Browser:
    """The program that looks at the page; what it saw, line by line."""

    def __init__(self, service: Service, folder: Path, victim: str) -> None:
        command = [
            "node",
            CLIENTS / "page.mjs",
            _chromium(),
            service.url,
            CHANNEL,
            DOCUMENT,
            victim,
            folder / "page.png",
        ]
        packages = folder_with_packages()
        self._errors = folder / "browser.log"
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                list(map(str, command)), cwd=packages, stdout=subprocess.PIPE, stderr=errors, text=True
            )

    def saw(self, what: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, self._errors.read_text()[-4000:]
        told: dict[str, Any] = json.loads(line)
        assert told["saw"] == what
        return told

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.mark.slow
def test_the_page_shows_what_happens_and_is_for_everybody(tmp_path: Path, redis_url: str) -> None:
    """A written document and a killed node's vbuckets show; names that look like markup stay text."""
    with (
        DevBucket(DevBucketConfig(n_vbuckets=64)) as bucket,
        Node("n1", tmp_path, redis_url, bucket, index__partitions=8).start() as stays,
        Node("n2", tmp_path, redis_url, bucket, index__partitions=8).start() as dies,
        Service(tmp_path, redis_url, coordination_ttl_s=2.0) as service,
        connect(bucket) as client,
    ):
        loader = Loader(client, InlineLayout())
        loader.load([Revision("first", "1-aa", (CHANNEL,))])
        await_stable(redis_url, bucket)
        until(lambda: _owners(dies) == {"n1", "n2"}, "both nodes to own partitions")
        browser = Browser(service.start(), tmp_path, "n2")
        try:
            assert browser.saw("ready")["owned"] > 0
            assert service.ask("GET", f"/{service.db}").json["lag"].keys() == {"changes", "seconds"}
            loader.load([Revision(DOCUMENT, "1-aa", (CHANNEL,))])
            row = browser.saw("row")
            assert (row["marked"], row["hacked"]) == (0, False)
            dies.kill()
            assert "moved to n1" in browser.saw("moved")["news"]
            done = browser.saw("done")
            assert done["violations"] == []
            assert done["complaints"] == []
            assert done["channel"] == CHANNEL
            assert done["described"].startswith("vbucket 8: n1")
            asked = urllib.parse.parse_qs(urllib.parse.urlsplit(shlex.split(done["curl"])[-1]).query)
            assert json.loads(asked["channels"][0]) == [CHANNEL]
            assert done["paths"] == ["/", "/_events", "/_page.css", "/_page.js"], "nothing comes from elsewhere"
        finally:
            browser.close()
        assert stays.running


def _owners(node: Node) -> set[str]:
    listed = cli("partitions", "--json", "--config", node.config)
    return {part["owner"] for part in json.loads(listed.stdout)} if listed.returncode == 0 else set()


def test_the_page_is_for_who_may_read_everything(tmp_path: Path, redis_url: str) -> None:
    tokens = tmp_path / "tokens"
    some = cli("token", "new", "some", "--channels", "a", "--file", tokens).stdout.strip()
    everything = cli("token", "new", "all", "--channels", "*", "--file", tokens).stdout.strip()
    with (
        DevBucket(DevBucketConfig(n_vbuckets=16)) as bucket,
        Node("n1", tmp_path, redis_url, bucket, index__partitions=8).start(),
        Service(tmp_path, redis_url, serve_tokens_file=tokens) as service,
    ):
        await_stable(redis_url, bucket)
        service.start()
        stranger = service.ask("GET", "/", Accept="text/html")
        assert (stranger.status, b'action="/_session"' in stranger.body) == (401, True)
        form = urllib.parse.urlencode({"password": everything}).encode()
        kind = "application/x-www-form-urlencoded"
        logged_in = service.ask("POST", "/_session", form, Content_Type=kind, Accept="text/html")
        assert (logged_in.status, logged_in.headers["location"]) == (303, "/")
        cookie = logged_in.headers["set-cookie"].partition(";")[0]
        page = service.ask("GET", "/", Accept="text/html", Cookie=cookie)
        assert (page.status, page.body.count(b'role="gridcell"')) == (200, 16)
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert "unsafe" not in page.headers["content-security-policy"]
        assert service.ask("GET", "/_events", Authorization=f"Bearer {some}").status == 403
        assert service.ask("GET", "/_events").status == 401
        assert service.ask("GET", "/", Accept="text/html", Authorization=f"Bearer {some}").status == 401
