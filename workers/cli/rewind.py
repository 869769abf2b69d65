"""`channelindex rewind`: takes partitions back to an earlier clock.

`rebuild` and `quarantine retry` share its steps: ask, take partitions back under a lock, wait until the index is back.
"""

import argparse
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import msgspec

from channelindex import exits
from channelindex.checking.rewind import Rewound, progress, requester, rewind_partitions
from channelindex.config import REQUIRED_TO_READ, Config
from channelindex.errors import InputInvalid, NotConfirmed
from channelindex.model import IndexMeta
from channelindex.stores import open_owner, open_reader
from channelindex.stores.base import IndexReader
from coordinator.lock import job_lock
from workers.cli import options, output
from workers.cli.progress import progress_bar

BEGINNING = "BEGINNING"
_MAX_SEQNO = (1 << 64) - 1
READERS_MEANWHILE = """\
Until the stable clock is back where it was, readers get less than before: a
document that has not been indexed again is in no channel, and is not reported as
removed. A reader with an older token gets every document of these vbuckets once
more, as it becomes stable. Nothing is lost, and no reader has to start over. The
blocks written so far stay in the store; the new ones take space in addition."""

_POLL_S = 0.5

Plan = Callable[[IndexMeta], tuple[Collection[int], Mapping[int, int]]]
"""Chooses the partitions that are taken back, and the clock that they are taken back to."""

_EPILOG = f"""\
example:
  channelindex rewind --partition 12 --to BEGINNING
  channelindex rewind --partition 12 --to 192:40100,193:39877
  channelindex rewind --all --to @clock.json

CLOCK is BEGINNING, or VBUCKET:SEQNO pairs, or @FILE with a JSON object of them;
"clock" in `inspect partition P --json` is one. A vbucket that it does not name,
or that is not above it, is unchanged. The running nodes stream the bucket again
from there.

{READERS_MEANWHILE}

Ctrl-C during the waiting ends only the waiting.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.epilog = _EPILOG
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--partition", type=number, action="append", metavar="P", help="a partition; may be repeated")
    which.add_argument("--all", action="store_true", help="all partitions")
    parser.add_argument("--to", type=_clock, required=True, metavar="CLOCK", help="clock to go back to")
    add_rewind_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Take the partitions back."""
    config = options.config_of(args, REQUIRED_TO_READ)
    rewind_and_wait(config, args, "rewind", lambda meta: _plan(meta, args.partition, args.to))
    return exits.OK


def _plan(
    meta: IndexMeta, partitions: Collection[int] | None, clock: Mapping[int, int] | None
) -> tuple[Collection[int], Mapping[int, int]]:
    """The partitions and the clock, checked against the index. No partitions: all. No clock: the beginning."""
    known = checked_partitions(partitions, meta)
    outside = [vb for vb in clock or () if vb >= meta.n_vbuckets]
    if outside:
        raise InputInvalid(f"there is no vbucket {outside[0]}: the index has 0 to {meta.n_vbuckets - 1}")
    chosen = range(meta.n_partitions) if partitions is None else sorted(known)
    return chosen, dict.fromkeys(range(meta.n_vbuckets), 0) if clock is None else clock


def checked_partitions(asked: Collection[int] | None, meta: IndexMeta) -> Collection[int]:
    """The partitions that were *asked* for, each once.

    Raises:
        InputInvalid: the index has no such partition.
    """
    chosen = set(asked or ())
    unknown = sorted(partition for partition in chosen if partition >= meta.n_partitions)
    if unknown:
        raise InputInvalid(f"there is no partition {unknown[0]}: the index has 0 to {meta.n_partitions - 1}")
    return chosen


def number(text: str) -> int:
    """The number of a partition, as an argument's type."""
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of a partition")
    return int(text)


def _clock(text: str) -> dict[int, int] | None:
    """The clock that *text* names, as an argument's type; None for the beginning."""
    if text == BEGINNING:
        return None
    try:
        pairs = (
            _pairs_in_file(Path(text[1:])) if text.startswith("@") else [pair.split(":") for pair in text.split(",")]
        )
    except (ValueError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise argparse.ArgumentTypeError(f"{text!r} is no clock: {reason}") from error
    try:
        clock = {int(vb): int(seqno) for vb, seqno in pairs}
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no clock, which is BEGINNING, or VBUCKET:SEQNO pairs") from error
    if not all(vb >= 0 and 0 <= seqno <= _MAX_SEQNO for vb, seqno in clock.items()):
        raise argparse.ArgumentTypeError(f"{text!r} is no clock: a number in it is out of range")
    return clock


def _pairs_in_file(path: Path) -> list[list[str]]:
    loaded = msgspec.json.decode(path.read_bytes())
    if not isinstance(loaded, dict):
        raise ValueError("the file is not a JSON object")
    return [[vb, str(seqno)] for vb, seqno in loaded.items()]


def add_rewind_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that rewind, rebuild and quarantine share."""
    parser.add_argument("--yes", action="store_true", help="do not ask for confirmation")
    parser.add_argument("--no-wait", action="store_true", help="do not wait until the stable clock is back")
    options.add_json(parser)
    options.add_config(parser)


def rewind_and_wait(config: Config, args: argparse.Namespace, job: str, plan: Plan, *, restores: bool = False) -> None:
    """Rewind what *plan* chooses, after confirmation, and wait; *job* names the command.

    Where it *restores*, partition records and channels that are missing or damaged are put back before.

    Raises:
        NotConfirmed: a person declined, or nobody could be asked.
        CoordinationUnavailable: another such command is running.
    """
    with closing(open_reader(config.index)) as reader:
        partitions, clock = plan(reader.meta())
        if not args.yes:
            confirm(f"{job} {len(partitions)} partitions of index {config.index.name!r}?")
        with closing(open_owner(config.index)) as owner, job_lock(config.coordination.redis, config.index.name, job):
            if restores:
                owner.restore(reader.meta())
                owner.repair_channels()
            rewound = list(rewind_partitions(owner, reader, partitions, clock, requester(job)))
        n_lowered = sum(each.before[vb] > each.after[vb] for each in rewound for vb in each.after)
        if not args.json:
            output.line(f"{len(rewound)} partitions taken back, {n_lowered} vbuckets were above the clock")
            if args.yes:
                output.paragraph(READERS_MEANWHILE)
            if not args.no_wait:
                output.line("waiting for the nodes to index it again; Ctrl-C ends only the waiting")
        is_back = False if args.no_wait else wait_until_stable(reader, rewound)
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


def confirm(question: str) -> None:
    """Ask a person for confirmation, and print what readers will see.

    Raises:
        NotConfirmed: the answer was not yes, or nobody can be asked.
    """
    if not sys.stdin.isatty():
        raise NotConfirmed(f"{question} There is no terminal to ask on: give --yes")
    print(f"{READERS_MEANWHILE}\n{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise NotConfirmed("nothing was changed")


def wait_until_stable(reader: IndexReader, rewound: Sequence[Rewound]) -> bool:
    """Wait until the stable clock is back; shows a progress bar on a terminal."""
    with progress_bar("seqnos indexed again") as bar:
        while True:
            counter = reader.stable_counter()
            done, total = progress(rewound, reader.partition_records())
            bar(done, total)
            if done >= total:
                return True
            reader.wait_stable(counter, _POLL_S)
