"""`channelindex rewind`: some partitions, back to an earlier clock."""

import argparse
from collections.abc import Collection, Mapping
from pathlib import Path

import orjson

from channelindex import exits
from channelindex.config import REQUIRED_TO_READ
from channelindex.errors import InputInvalid
from channelindex.model import IndexMeta
from workers.cli import options, rewinding

BEGINNING = "BEGINNING"
_MAX_SEQNO = (1 << 64) - 1

_EPILOG = f"""\
example:
  channelindex rewind --partition 12 --to BEGINNING
  channelindex rewind --partition 12 --to 192:40100,193:39877
  channelindex rewind --all --to @clock.json

CLOCK is BEGINNING, or VBUCKET:SEQNO pairs, or @FILE with a JSON object of them;
"clock" in `inspect partition P --json` is one. A vbucket that it does not name,
or that is not above it, stays where it is. The running nodes stream the bucket
again from there.

{rewinding.READERS_MEANWHILE}

To interrupt it while it waits ends the waiting alone.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.epilog = _EPILOG
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--partition", type=_number, action="append", metavar="P", help="this one; may be repeated")
    which.add_argument("--all", action="store_true", help="all partitions")
    parser.add_argument("--to", type=_clock, required=True, metavar="CLOCK", help="where to go back to")
    rewinding.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Take the partitions back."""
    config = options.config_of(args, REQUIRED_TO_READ)
    rewinding.take_back(config, args, "rewind", lambda meta: _plan(meta, args.partition, args.to))
    return exits.OK


def _plan(
    meta: IndexMeta, partitions: Collection[int] | None, clock: Mapping[int, int] | None
) -> tuple[Collection[int], Mapping[int, int]]:
    """The partitions and the clock, checked against the index. No partitions: all. No clock: the beginning."""
    unknown = [partition for partition in partitions or () if partition >= meta.n_partitions]
    if unknown:
        raise InputInvalid(f"there is no partition {unknown[0]}: the index has 0 to {meta.n_partitions - 1}")
    outside = [vb for vb in clock or () if vb >= meta.n_vbuckets]
    if outside:
        raise InputInvalid(f"there is no vbucket {outside[0]}: the index has 0 to {meta.n_vbuckets - 1}")
    chosen = range(meta.n_partitions) if partitions is None else sorted(set(partitions))
    return chosen, dict.fromkeys(range(meta.n_vbuckets), 0) if clock is None else clock


def _number(text: str) -> int:
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
        clock = {int(vb): int(seqno) for vb, seqno in pairs}
    except (ValueError, TypeError, OSError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no clock: {error}") from error
    if not all(vb >= 0 and 0 <= seqno <= _MAX_SEQNO for vb, seqno in clock.items()):
        raise argparse.ArgumentTypeError(f"{text!r} is no clock: a number in it is out of range")
    return clock


def _pairs_in_file(path: Path) -> list[list[str]]:
    loaded = orjson.loads(path.read_bytes())
    if not isinstance(loaded, dict):
        raise ValueError("the file holds no JSON object")
    return [[vb, str(seqno)] for vb, seqno in loaded.items()]
