"""The fault suite: `make chaos [SEED=] [MINUTES=]`. Exit code 1 if anything is lost, invented, told twice, or stuck."""

import argparse
import math
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.chaos import schedule
from tests.chaos.faults import KINDS, STORES
from tests.chaos.play import Outcome, play
from tests.chaos.report import table
from tests.chaos.schedule import Episode

EPISODES = 24
"""In one world. What fails is played again to be made smaller, so a round must be short."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run it."""
    args = _parse(argv)
    seed = random.SystemRandom().getrandbits(32) if args.seed is None else args.seed
    _say(f"seed {seed}, {args.minutes:g} minutes, store {args.store}")
    begun = time.monotonic()
    deadline = begun + args.minutes * 60
    total = Outcome()
    number = 0
    while not total.findings and (number == 0 or time.monotonic() < deadline):
        number += 1
        given = args.schedule is not None
        episodes = args.schedule if given else schedule.draw(f"{seed}/{number}", EPISODES, args.store)
        _say(f"-- world {number}")
        folder = Path(tempfile.mkdtemp(prefix="world-", dir=args.bundle))
        outcome = play(folder, episodes, math.inf if given else deadline, _say, args.store)
        total.add(outcome)
        if outcome.findings:
            _explain(outcome, folder, seed, episodes, args)
        elif max((seconds for _, seconds in outcome.recoveries), default=0.0) > args.keep_slow:
            _say(f"what recovered slowly is in {folder}")
        else:
            shutil.rmtree(folder)
    _say(table(total, time.monotonic() - begun))
    if not total.injected:
        _say("no fault was injected: nothing was shown")
    return 1 if total.findings or not total.injected else 0


def _explain(outcome: Outcome, folder: Path, seed: int, episodes: Sequence[Episode], args: argparse.Namespace) -> None:
    """Tell what is wrong, and leave all that helps in *folder*: logs, record, index, the schedule and a smaller one."""
    text = "".join(f"{finding.kind}: {finding.what}\n" for finding in outcome.findings)
    (folder / "findings.txt").write_text(text)
    schedule.save(folder / "schedule.jsonl", episodes)
    _say(text[:10_000])
    _say(f"seed {seed}; logs, record, index and schedule are in {folder}")
    if args.tries <= 0:
        return
    _say(f"making the schedule smaller, by at most {args.tries} tries")
    tries = iter(range(args.tries))
    world = folder / "smaller"

    def fails(fewer: list[Episode]) -> bool:
        if next(tries, None) is None:
            return False
        shutil.rmtree(world, ignore_errors=True)
        world.mkdir()
        failed = bool(play(world, fewer, math.inf, lambda line: None, args.store).findings)
        _say(f"{len(fewer)} episodes, {sum(map(len, fewer))} faults: {'fails' if failed else 'does not fail'}")
        return failed

    smaller = schedule.shrink(episodes, fails)
    schedule.save(folder / "shrunk.jsonl", smaller)
    _say(f"shrunk schedule, to be given as SCHEDULE: {folder / 'shrunk.jsonl'}")
    for episode in smaller:
        _say(f"  {' '.join(f'{f.kind}({f.seed}) at {f.at_s} for {f.for_s};' for f in episode)}")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, help="repeats the schedule of a run (default: a new one, which is told)")
    parser.add_argument("--minutes", type=float, default=5.0, help="how long worlds are begun (default: 5)")
    parser.add_argument("--store", choices=STORES, default="redis", help="what holds the index (default: redis)")
    parser.add_argument("--schedule", type=_episodes, help="play this file of episodes in place of drawn ones")
    parser.add_argument("--tries", type=int, default=30, help="to make a failing schedule smaller (default: 30)")
    parser.add_argument(
        "--keep-slow", type=float, default=math.inf, metavar="SECONDS", help="keep worlds that took longer to recover"
    )
    parser.add_argument("--bundle", type=Path, default=None, help="where worlds live, and stay if they fail")
    args = parser.parse_args(argv)
    if args.bundle is not None:
        args.bundle.mkdir(parents=True, exist_ok=True)
    return args


def _episodes(path: str) -> list[Episode]:
    try:
        episodes = schedule.load(Path(path))
    except (OSError, ValueError, TypeError) as error:
        raise argparse.ArgumentTypeError(f"{path} is no schedule: {error}") from error
    unknown = {fault.kind for episode in episodes for fault in episode} - KINDS.keys()
    if unknown:
        raise argparse.ArgumentTypeError(f"{path} has faults that are not known: {', '.join(sorted(unknown))}")
    return episodes


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the nodes are to end with us
    sys.exit(main())
