"""The one checker: judges a run under faults by what it left behind; run on a bundle, it judges that again.

It shares no code with what it judges. What was written and what readers were told comes from the record, what is stored
from the bytes in Redis. tests/chaos/test_checker.py shows that it finds faults, planted one by one into the product.
"""

import sys
from pathlib import Path

from tests.chaos.finding import Finding
from tests.chaos.index_rules import judge_index
from tests.chaos.raw_index import RawIndex
from tests.chaos.reader_rules import judge_readers, judge_stable_clock
from tests.chaos.record import Record

__all__ = ["Finding", "judge"]


def judge(record: Record, index: RawIndex) -> list[Finding]:
    """Everything that is wrong. Each rule says beside it why it never accuses a product that does what it promises."""
    return [
        *judge_index(record, index),
        *judge_readers(record),
        *judge_stable_clock(record.samples, record.rollbacks),
    ]


def main(arguments: list[str]) -> int:
    """Judge the bundle in the folder that is named: 1 if something is wrong, 2 if no folder is named."""
    if len(arguments) != 1:
        print("usage: python -m tests.chaos.checker FOLDER", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    findings = judge(Record.load(folder), RawIndex.load(folder))
    for finding in findings:
        print(f"{finding.kind}: {finding.what}")
    return int(bool(findings))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
