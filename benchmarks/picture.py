"""Draws docs/images/top.svg: `channelindex top` of two nodes that index a busy dev bucket.

make picture
"""

import io
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

from rich.console import Console

from channelindex.config import Config, load_config
from channelindex.errors import IndexMissing
from channelindex.feeds.dcp.auth import Credentials
from channelindex.feeds.dcp.connstr import parse_source_url
from channelindex.feeds.dcp.kv import KvClient
from devbucket.embedded_redis import EmbeddedRedis
from devbucket.process import DevBucket
from devbucket.sync_gateway.layouts import InlineLayout
from devbucket.sync_gateway.loader import Loader
from devbucket.sync_gateway.revisions import Revision
from workers.cli.status import StatusReader
from workers.cli.top_keys import Choice
from workers.cli.top_model import Trend
from workers.cli.top_screen import screen

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "top.svg"
WIDTH, HEIGHT = 120, 30
CHANNELS = ("orders", "invoices", "stock", "shipments", "customers", "returns", "prices", "audit")
WRITE_S = 8.0
BATCH = 200
SAMPLE_AT_S = 1.0
START_TIMEOUT_S = 30.0


def main() -> None:
    """Run two nodes, write for some seconds, and save the last screen."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        store = stack.enter_context(EmbeddedRedis())
        bucket = stack.enter_context(DevBucket())
        for name in ("node-a", "node-b"):
            stack.callback(_stop, _start_node(folder, name, store.url, bucket))
        config = load_config(folder / "node-a.toml", {}, {})
        reader = stack.enter_context(closing(_open(config)))
        credentials = Credentials(bucket.user, bucket.password)
        client = stack.enter_context(KvClient(parse_source_url(bucket.url), credentials))
        picture = _watch(reader, Loader(client, InlineLayout()))
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(picture, encoding="utf-8")


def _start_node(folder: Path, name: str, redis_url: str, bucket: DevBucket) -> "subprocess.Popen[bytes]":
    path = folder / f"{name}.toml"
    path.write_text(
        f'node.name = "{name}"\nnode.run_dir = "{folder / name}"\nsource.url = "{bucket.url}"\n'
        f'source.user = "{bucket.user}"\nsource.password = "{bucket.password}"\nindex.name = "orders"\n'
        f'index.store = "{redis_url}"\ncoordination.ttl_s = 1.5\nlog.level = "warning"\n'
    )
    return subprocess.Popen([sys.executable, "-m", "channelindex", "run", "--config", path])


def _stop(node: "subprocess.Popen[bytes]") -> None:
    node.terminate()
    node.wait(60)


def _open(config: Config) -> StatusReader:
    """Open the index as soon as the nodes have created it and own all of it."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            reader = StatusReader(config)
        except IndexMissing:
            time.sleep(0.1)
            continue
        while time.monotonic() < deadline:
            state = reader.read()
            shares = [node["n_partitions"] for node in state["nodes"]]
            if len(shares) == 2 and len(set(shares)) == 1 and not state["unowned"]:
                return reader
            time.sleep(0.1)
    raise SystemExit(f"the nodes did not share the partitions within {START_TIMEOUT_S:g} s")


def _watch(reader: StatusReader, loader: Loader) -> str:
    """Write for WRITE_S; return the screen at the end as SVG."""
    trend, revisions = Trend(), _revisions()
    began, sample_at = time.monotonic(), 0.0
    while time.monotonic() < began + WRITE_S:
        loader.load([next(revisions) for _ in range(BATCH)])
        if time.monotonic() >= sample_at:
            sample_at = time.monotonic() + SAMPLE_AT_S
            state = reader.read()
            trend.add(time.monotonic(), reader.stable())
            trend.note(state)
    console = Console(record=True, width=WIDTH, file=io.StringIO(), highlight=False, force_terminal=True)
    console.print(screen(state, trend, WIDTH, HEIGHT, time.strftime("%H:%M:%S"), Choice()))
    svg = console.export_svg(title="channelindex top")
    return re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)  # fonts of the reader's machine, none fetched


def _revisions() -> Iterator[Revision]:
    """New documents without end, each in one to three of CHANNELS, some of which are busier."""
    rnd = random.Random(1)
    weights = range(len(CHANNELS), 0, -1)
    number = 0
    while True:
        number += 1
        channels = tuple(sorted(set(rnd.choices(CHANNELS, weights, k=rnd.randint(1, 3)))))
        yield Revision(f"doc-{number:07}", f"1-{rnd.getrandbits(128):032x}", channels, {"number": number})


if __name__ == "__main__":
    main()
