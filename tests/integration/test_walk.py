"""One change on its way: the files that a document's mutation enters, from the socket to the stable clock."""

import itertools
import re
import select
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from channelindex import kernel
from channelindex.blocks import FORMAT_VERSION
from channelindex.decode.registry import make_decoder
from channelindex.feeds.dcp import session
from channelindex.logs import get
from channelindex.model import IndexMeta
from channelindex.settings import IndexSettings, SourceSettings
from channelindex.stores import open_owner, open_reader, open_writer
from channelindex.stores.redis import owner
from devbucket.bucket_config import DevBucketConfig
from devbucket.process import DevBucket
from devbucket.sync_gateway.layouts import InlineLayout
from devbucket.sync_gateway.loader import Loader
from devbucket.sync_gateway.revisions import Revision
from tests.support.kernel_pairs import using
from tests.support.running import connect
from workers.node.shared import Shared
from workers.pipeline.assignment import assignment_link
from workers.pipeline.batch_writer import BatchWriter
from workers.pipeline.feed_worker import FeedWorker
from workers.pipeline.outbox import RingOutbox
from workers.pipeline.round import RoundBuilder
from workers.pipeline.source import describe, open_feed
from workers.signals import StopFlag
from workers.telemetry.board import Board
from workers.telemetry.hot_channels import HotChannels

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("channelindex", "coordinator", "workers")
MOST_FILES = 20
FORK = Path("channelindex/kernel.py")
WARM_UP = 3
"""Changes that come before: the first one looks for its block, and each script is once sent whole."""
DEADLINE_S = 120.0


class Pipeline:
    """A feed worker and a batch writer in this process, by turns: a real bucket's feed, a real ring, a real Redis."""

    def __init__(self, bucket: DevBucket, redis_url: str, opened: ExitStack) -> None:
        source = SourceSettings(url=bucket.url, user=bucket.user, password=bucket.password)
        index = IndexSettings("walk", redis_url)
        info = describe(source)
        meta = IndexMeta(FORMAT_VERSION, info.n_vbuckets, 1, info.uuid, "walk")
        decoder = make_decoder(source.decoder, star_channel=True)
        shared, board = Shared(1, 1, 1 << 20), Board(1)
        opened.callback(shared.close)
        ours, its = assignment_link(frozenset({0}))
        opened.enter_context(closing(ours))
        owner, store = (
            opened.enter_context(closing(open_owner(index))),
            opened.enter_context(closing(open_writer(index))),
        )
        owner.create_or_check(meta)
        stop = StopFlag()
        self.reader = opened.enter_context(closing(open_reader(index)))
        self.worker = FeedWorker(
            owner="walk",
            partitions=[0],
            meta=meta,
            store=owner,
            feed=opened.enter_context(closing(open_feed(source, "walk", info.uuid, decoder=decoder))),
            new_builder=lambda checkpoints: RoundBuilder(decoder, 1, checkpoints),
            outbox=RingOutbox(shared.rings[0], shared.data_bells),
            space_bell=shared.space_bells[0],
            stats=board.feeds[0],
            rows=board.partitions,
            stop=stop,
            assignment=its,
            log=get("walk"),
        )
        self.writer = BatchWriter(
            store=store,
            rings=shared.rings_of_writer(0),
            commit_bells=shared.commit_bells,
            data_bell=shared.data_bells[0],
            batch_bytes=1 << 20,
            stats=board.writers[0],
            hot_channels=HotChannels(board.hot_channels[0]),
            stop=stop,
            log=get("walk"),
        )
        opened.enter_context(closing(its))

    @property
    def stable(self) -> int:
        """The stable seqno of the only vbucket."""
        return self.reader.partition_records()[0].stable[0]

    def run_until(self, seqno: int) -> None:
        """Work until *seqno* is stable."""
        deadline = time.monotonic() + DEADLINE_S
        while self.stable < seqno:
            assert time.monotonic() < deadline, f"seqno {seqno} does not become stable"
            self.worker._turn()
            self.writer._write_batch()

    def walk(self, files: dict[str, list[str]]) -> bool:
        """Move on what comes next, and note the way in *files*; False if it did not come in one piece."""
        before = self.stable
        assert select.select([self.worker._feed], [], [], DEADLINE_S)[0], "nothing comes from the bucket"
        with entered(files):
            self.worker._move_changes(time.monotonic(), reads=True)
        if self.worker._outbox.empty:
            return False
        with entered(files):
            self.writer._write_batch()
        self.worker._advance_at = 0.0
        with entered(files):
            self.worker._move_changes(time.monotonic(), reads=True)
        return self.stable > before


def is_of_the_way(path: Path) -> bool:
    """Whether a file is the product's: what chooses between Python and the kernel is a fork, no part of the way."""
    return path.parts[0] in PRODUCT and path != FORK


@contextmanager
def entered(files: dict[str, list[str]]) -> Iterator[None]:
    """Note in *files* the product files, in order, whose functions are called meanwhile, and which these are."""

    def note(frame: FrameType, event: str, _argument: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(ROOT) and is_of_the_way(path.relative_to(ROOT)):
            functions = files.setdefault(str(path.relative_to(ROOT)), [])
            if frame.f_code.co_qualname not in functions:
                functions.append(frame.f_code.co_qualname)

    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)


@pytest.fixture
def walked(redis_url, monkeypatch):
    """The files that a change of a document enters, in order, with the functions."""
    monkeypatch.setattr(session, "_HIGH_SEQNOS_INTERVAL_S", float("inf"))  # answers to that are no change
    monkeypatch.setattr(owner, "ASK_INTERVAL_S", float("inf"))  # nor is the identity of the servers
    with DevBucket(DevBucketConfig(n_vbuckets=1)) as bucket, connect(bucket) as client, ExitStack() as opened:
        opened.enter_context(using(kernel.OFF))  # what it does in C nobody sees
        loader = Loader(client, InlineLayout())
        pipeline = Pipeline(bucket, redis_url, opened)
        checkpoints = pipeline.worker._begin_epochs()
        assert checkpoints is not None
        pipeline.worker._start(checkpoints)
        pipeline.worker._note_at = float("inf")  # a note of what is stable when is no part of a change
        pipeline.worker._check_at = float("inf")  # nor is a look from time to time if the epoch is still ours
        for number in range(1, WARM_UP + 1):
            loader.load([Revision("doc", f"{number}-a", ("news",))])
            pipeline.run_until(bucket.high_seqnos()[0])
        for number in itertools.count(WARM_UP + 1):
            loader.load([Revision("doc", f"{number}-a", ("news",))])
            files: dict[str, list[str]] = {}
            if pipeline.walk(files):
                return files
            pipeline.run_until(bucket.high_seqnos()[0])  # its frames came one by one: the next one, then
    raise AssertionError


def _documented() -> list[str]:
    """The walk for newcomers in docs/architecture.md."""
    section = (ROOT / "docs/architecture.md").read_text().split("\n## A walk along one change\n")[1].split("\n## ")[0]
    return re.findall(r"^\d+\. `([^`]+)`", section, re.MULTILINE)


def test_a_change_takes_the_way_that_the_docs_say_through_few_files(walked):
    assert list(walked) == _documented(), walked
    assert len(walked) <= MOST_FILES
