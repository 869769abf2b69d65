"""The table at the end of a run."""

from collections.abc import Iterator

from tests.chaos.play import Outcome
from tests.support.gaps import percentile

REPAIRED = "evict_key_that_is_missed"
"""The fault after which an operator runs `repair`: what that takes is told apart."""


def table(outcome: Outcome, seconds: float) -> str:
    """What happened, as a table in Markdown."""
    return "\n".join((*_kinds(outcome), "", *_totals(outcome, seconds)))


def _kinds(outcome: Outcome) -> Iterator[str]:
    yield "| fault | injected | recovery with it, p50 | max |"
    yield "| --- | ---: | ---: | ---: |"
    for kind, count in sorted(outcome.injected.items()):
        times = sorted(seconds for kinds, seconds in outcome.recoveries if kind in kinds)
        yield f"| {kind} | {count} | {percentile(times, 0.5):.2f} s | {percentile(times, 1.0):.2f} s |"


def _totals(outcome: Outcome, seconds: float) -> Iterator[str]:
    times = sorted(seconds for kinds, seconds in outcome.recoveries if REPAIRED not in kinds)
    repairs = sorted(seconds for kinds, seconds in outcome.recoveries if REPAIRED in kinds)
    kinds = [finding.kind for finding in outcome.findings]
    counted = ("lost", "phantom", "duplicate")
    yield f"| {seconds / 60:.0f} minutes | |"
    yield "| --- | ---: |"
    yield f"| faults injected, of {len(outcome.injected)} kinds | {outcome.injected.total()} |"
    yield f"| failovers to a replica that lacked acknowledged writes | {outcome.n_lost_tails} |"
    yield f"| channels compacted | {outcome.n_switches} |"
    yield f"| episodes | {len(outcome.recoveries)} |"
    yield f"| events (revisions that the bucket took) | {outcome.n_events} |"
    yield from (f"| {name} | {kinds.count(name)} |" for name in counted)
    yield f"| anything else found | {sum(kind not in counted for kind in kinds)} |"
    yield f"| recovery p50 | {percentile(times, 0.5):.2f} s |"
    yield f"| recovery p99 | {percentile(times, 0.99):.2f} s |"
    yield f"| recovery max | {percentile(times, 1.0):.2f} s |"
    if repairs:
        yield f"| recovery with `repair`, p50 | {percentile(repairs, 0.5):.2f} s |"
        yield f"| recovery with `repair`, max | {percentile(repairs, 1.0):.2f} s |"
