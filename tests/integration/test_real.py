"""`make test-real` against a dev bucket that it takes for any server: by its network address only."""

import os
import re
import subprocess
import sys

import pytest

from devbucket import DevBucket, DevBucketConfig
from devbucket.accounts import Account
from tests.real.scenarios import SCENARIOS, check
from tests.support.certificates import Certificates
from tests.support.dcp_reading import Reading
from tests.support.running import connect

NEVER_HERE = {"TLS", "failover, rollback, rebalance, purge, a bucket made again"}


def run(url: str, user: str, password: str, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.real", url, "--user", user, *more]
    environment = {**os.environ, "BUCKET_PASSWORD": password}
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=240, env=environment)


def results(printed: str) -> dict[str, tuple[str, str]]:
    """Result and detail of each scenario, from the table."""
    rows = re.findall(r"^\| (.*?) \| (.*?) \| (.*) \| [0-9.]+ \|$", printed, re.MULTILINE)
    return {title: (result, detail) for title, result, detail in rows}


def test_all_that_the_network_shows_passes_and_nothing_else_does():
    """The bucket holds all compressed, and a document of somebody else's, which stays."""
    with DevBucket(DevBucketConfig(n_vbuckets=16, n_nodes=2, compression_mode="active")) as bucket:
        with connect(bucket) as client:
            client.store(b"somebody's", b"{}")
        done = run(bucket.url, bucket.user, bucket.password)
        assert done.returncode == 0, done.stderr
        assert "documents under `channelindex-test-" in done.stdout
        with Reading(bucket) as reading:
            reading.until_caught_up(bucket)
            assert [key for _, _, key in reading.documents()] == [b"somebody's"], "all others are deleted"
    table = results(done.stdout)
    assert table.keys() == {each.title for each in SCENARIOS}
    assert {title for title, (result, _) in table.items() if result != "passed"} == NEVER_HERE
    assert all(table[title][0] == "not run" and table[title][1] for title in NEVER_HERE)


@pytest.mark.parametrize(
    ("account", "why"),
    [
        (Account("reader", "pw", may_write=False), "reader may not write"),
        (Account("writer", "pw", may_stream=False), "writer may not stream"),
    ],
)
def test_missing_rights_are_reported_and_are_no_success(account, why):
    with DevBucket(DevBucketConfig(n_vbuckets=4, more_accounts=(account,))) as bucket:
        done = run(bucket.url, account.name, account.password)
        assert done.returncode == 2, done.stderr
        table = results(done.stdout)
        assert {result for result, _ in table.values()} == {"not run"}, table
        assert why in table["metadata in xattrs: documents that live, moved, tombstones"][1]


def test_bucket_that_cannot_be_reached_is_reported_in_a_line():
    done = run("couchbase://127.0.0.1:1/default", "nobody", "")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "couchbase://127.0.0.1:1/default cannot be used: " in done.stderr


def test_tls_bucket_is_reached_by_its_authority(tmp_path):
    certificates = Certificates.make(tmp_path)
    config = DevBucketConfig(n_vbuckets=4, tls=certificates.server())
    with DevBucket(config) as bucket:
        done = run(
            bucket.tls_url, bucket.user, bucket.password, "--ca-file", certificates.path("ca.pem"), "--only", "TLS"
        )
    assert done.returncode == 0, done.stderr
    assert results(done.stdout)["TLS"][0] == "passed"


def test_index_that_is_not_what_was_written_fails():
    row = ("doc", "1-a", False, False)
    check({"a": {row}}, {"a": {row}})
    with pytest.raises(AssertionError, match="1 of 1 entries are missing"):
        check({}, {"a": {row}})
    with pytest.raises(AssertionError, match="1 entries are untrue"):
        check({"a": {row}, "b": {row}}, {"a": {row}})
