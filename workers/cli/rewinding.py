"""What `rewind`, `rebuild` and `quarantine retry` have in common.

They ask first, take partitions back under a lock, and wait until all is back.
"""

import argparse
import os
import socket
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from channelindex.checking.rewind import Rewound, progress, rewind
from channelindex.config import Config
from channelindex.errors import NotConfirmed
from channelindex.model import IndexMeta
from channelindex.stores import open_owner, open_reader
from channelindex.stores.base import IndexReader
from coordinator.lock import job_lock
from workers.cli import options, output

READERS_MEANWHILE = """\
Until the stable clock is back where it was, readers are told less than before:
what has not been indexed again is in no channel for them, and none of it is
told as removed. A reader with an older token is told everything of the vbuckets
in question once more, as it becomes stable. Nothing is lost, and nobody has to
begin anew. Blocks written so far stay in the store as they are; what is written
again takes its room in addition."""

_POLL_S = 0.5

Plan = Callable[[IndexMeta], tuple[Collection[int], Mapping[int, int]]]
"""From an index to the partitions that are taken back, and the clock that they are taken back to."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that these commands have."""
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--no-wait", action="store_true", help="do not wait until the stable clock is back")
    options.add_json(parser)
    options.add_config(parser)


def take_back(config: Config, args: argparse.Namespace, job: str, plan: Plan) -> None:
    """Do what *plan* says, once somebody has said yes; *job* names the command.

    Raises:
        NotConfirmed: nobody has.
        CoordinationUnavailable: somebody else is at it.
    """
    with closing(open_reader(config.index)) as reader:
        partitions, clock = plan(reader.meta())
        if not args.yes:
            ask(f"{job} {len(partitions)} partitions of index {config.index.name!r}?")
        with closing(open_owner(config.index)) as owner, job_lock(config.coordination.redis, config.index.name, job):
            rewound = list(rewind(owner, reader, partitions, clock, whose(job)))
        n_lowered = sum(each.before[vb] > each.after[vb] for each in rewound for vb in each.after)
        if not args.json:
            output.line(f"{len(rewound)} partitions taken back, {n_lowered} vbuckets were above the clock")
            if args.yes:
                output.paragraph(READERS_MEANWHILE)
            if not args.no_wait:
                output.line("waiting for the nodes to index it again; Ctrl-C ends the waiting alone")
        is_back = False if args.no_wait else await_back(reader, rewound)
    if args.json:
        output.json_line(
            {
                "index": config.index.name,
                "partitions": [each.partition for each in rewound],
                "epochs": sorted({each.epoch for each in rewound}),
                "vbuckets_lowered": n_lowered,
                "back": is_back,
            }
        )
    elif is_back:
        output.line("the stable clock is back")


def whose(job: str) -> str:
    """What a partition record is told of who took the partition back."""
    return f"{job} by {socket.gethostname()}:{os.getpid()}"


def ask(question: str) -> None:
    """Have a person say yes, after being told what readers will see.

    Raises:
        NotConfirmed: nobody has.
    """
    if not sys.stdin.isatty():
        raise NotConfirmed(f"{question} Nobody can be asked here: give --yes")
    print(f"{READERS_MEANWHILE}\n{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise NotConfirmed("nothing was changed")


def await_back(reader: IndexReader, rewound: Sequence[Rewound]) -> bool:
    """Wait until the stable clock is back; shows how far it is where somebody is watching."""
    console = Console(stderr=True)
    columns = (TextColumn("indexing again"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("indexing again", total=None)
        while True:
            counter = reader.stable_counter()
            done, total = progress(rewound, reader.partition_records())
            bar.update(task, completed=done, total=total)
            if done >= total:
                return True
            reader.wait_stable(counter, _POLL_S)
