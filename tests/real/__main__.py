"""`make test-real BUCKET=couchbase://host/bucket`: the end-to-end scenarios against a bucket that somebody has.

It writes documents of its own under a prefix that is new each time, deletes them at the end, and prints a table to be
pasted into an issue. Exit code 1 if a scenario failed, 2 if none was run.
"""

import argparse
import os
import sys
import time
import traceback
from collections.abc import Sequence
from typing import NamedTuple

from channelindex import __version__, logs
from channelindex.errors import ChannelIndexError
from channelindex.feeds.dcp.exchange import Request
from channelindex.mcbp import Op
from tests.real.scenarios import SCENARIOS, Scenario
from tests.real.target import NotRun, Target

PASSED, FAILED, NOT_RUN = "passed", "**failed**", "not run"
PASSWORD_VARIABLE = "BUCKET_PASSWORD"


class Row(NamedTuple):
    """What came of a scenario."""

    title: str
    result: str
    detail: str
    seconds: float


def main(argv: Sequence[str] | None = None) -> int:
    """Run all scenarios and print the table."""
    args = _parse(argv)
    logs.configure(stream=sys.stderr, level="warning")
    target = Target(args.bucket, args.user, os.environ.get(PASSWORD_VARIABLE, ""), args.ca_file)
    try:
        about = _describe(target)
    except ChannelIndexError as error:
        print(f"{target.url} cannot be used: {error}", file=sys.stderr)
        return 2
    rows: list[Row] = []
    try:
        for number, each in enumerate(each for each in SCENARIOS if args.only in each.title):
            rows.append(_tried(each, target.part(number)))
            print(f"{rows[-1].result}: {each.title}", file=sys.stderr, flush=True)
    finally:
        print(_table(about, rows, _clean_up(target)))
    if any(row.result == FAILED for row in rows):
        return 1
    return 0 if any(row.result == PASSED for row in rows) else 2


def _tried(each: Scenario, target: Target) -> Row:
    begun = time.monotonic()
    try:
        result, detail = PASSED, each.run(target)
    except NotRun as missing:
        result, detail = NOT_RUN, str(missing)
    except Exception as error:  # whatever it is, the table has to say so
        traceback.print_exc()
        result, detail = FAILED, f"{type(error).__name__}: {error}"
    return Row(each.title, result, detail, time.monotonic() - begun)


def _describe(target: Target) -> str:
    with target.kv() as client:
        version = client.pipeline([Request(Op.VERSION, vb=0)])[0].value.decode(errors="replace")
        return f"channelindex {__version__}, server {version}, {client.source.n_vbuckets} vbuckets"


def _clean_up(target: Target) -> str:
    try:
        return f"{target.clean_up()} documents under `{target.prefix}` deleted"
    except ChannelIndexError as error:
        return f"**documents under `{target.prefix}` are left**: {error}"


def _table(about: str, rows: Sequence[Row], end: str) -> str:
    lines = ["", about, "", "| scenario | result | | s |", "| --- | --- | --- | ---: |"]
    for row in rows:
        detail = " ".join(row.detail.split()).replace("|", "\\|")
        lines.append(f"| {row.title} | {row.result} | {detail} | {row.seconds:.1f} |")
    return "\n".join([*lines, "", end])


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.real", description=__doc__, epilog=f"The password is in {PASSWORD_VARIABLE}."
    )
    parser.add_argument("bucket", metavar="URL", help="couchbase://host/bucket, as source.url takes it")
    parser.add_argument("--user", default="", help="who may read, stream and write the bucket")
    parser.add_argument(
        "--ca-file", default="", help="PEM file with the authorities that sign the server's certificate"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="only the scenarios whose titles hold it")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
