"""Steps that tests with running nodes share: load revisions, wait for the stable clock, read all channels, verify."""

import io
import json
import subprocess
from collections.abc import Mapping
from contextlib import closing, redirect_stdout
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from channelindex.feeds.dcp.auth import Credentials
from channelindex.feeds.dcp.connstr import parse_source_url
from channelindex.feeds.dcp.kv import KvClient
from channelindex.reading.changes_reader import ChangesReader
from channelindex.settings import SourceSettings
from channelindex.stores import open_reader
from devbucket.process import DevBucket
from tests.support.history import Membership
from tests.support.node import DEADLINE_S, stable_seqnos, until
from tests.support.starting import start
from tests.support.stores import settings_of
from workers.cli import main


def cli(
    *args: object, cwd: Path | None = None, environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `channelindex` with *args*, in this process's folder and environment if not in others."""
    with TemporaryFile() as stdout, TemporaryFile() as stderr:
        process = start(*args, output=stdout, errors=stderr, environ=environ, cwd=cwd, own_session=False)
        try:
            code = process.wait(DEADLINE_S)
        finally:
            process.kill()
            process.wait()
        for file in (stdout, stderr):
            file.seek(0)
        printed = [stdout.read().decode(), stderr.read().decode()]
    return subprocess.CompletedProcess(process.args, code, *printed)


def connect(bucket: DevBucket) -> KvClient:
    """A client of *bucket*."""
    return KvClient(parse_source_url(bucket.url), Credentials(bucket.user, bucket.password))


def source_of(bucket: DevBucket, **settings: Any) -> SourceSettings:
    """The settings of a feed of *bucket*."""
    return SourceSettings(url=bucket.url, user=bucket.user, password=bucket.password, **settings)


def await_stable(store_url: str, bucket: DevBucket, index_name: str = "channels") -> None:
    """Wait until the stable clock has reached what the bucket has now."""
    highs = bucket.high_seqnos()

    def reached() -> bool:
        stable = stable_seqnos(store_url, index_name)
        return bool(stable) and all(stable[vb] >= high for vb, high in enumerate(highs))

    until(reached, "the stable clock to reach the bucket's high seqnos")


def indexed_channels(store_url: str, index_name: str = "channels") -> Membership:
    """All channels as a reader is told of them from the beginning."""
    with closing(open_reader(settings_of(store_url, index_name))) as store:
        reader = ChangesReader(store)
        return {
            channel: {(e.id, e.rev, e.removed, e.deleted) for e in reader.changes([channel]).entries}
            for channel in store.channels()
        }


def assert_verified(config: Path, *channels: str, undecodable: int = 0) -> None:
    """`channelindex verify` finds nothing missing, extra or different in *channels*, or in all.

    It is not ok where the bucket has *undecodable* documents. The command runs in this process: many tests end with it,
    and to load the program takes longer than to compare.
    """
    told = io.StringIO()
    with redirect_stdout(told):
        code = main(["verify", "--json", "--config", str(config), *(f"--channel={channel}" for channel in channels)])
    assert code == (1 if undecodable else 0), told.getvalue()
    report = json.loads(told.getvalue())
    assert (report["undecodable"], report["behind"], report["ahead"]) == (undecodable, 0, 0)
    assert (report["missing"], report["extra"], report["different"]) == (0, 0, 0)
