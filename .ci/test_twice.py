"""Runs pytest, and what failed once more, each test alone: `.ci/run` does so, on a machine that others load too.

Integration and chaos tests that fail beside others and pass alone are listed in the file that is named first, and are
no failure; all other arguments are pytest's. Anything else that goes wrong is one: a unit test, a test that fails alone
too, one that cannot be collected or takes its process with it, and more than MOST_FAILED at once.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

RETRIED = ("tests/integration/", "tests/chaos/")
MOST_FAILED = 5
ALONE = "--alone"


class Outcomes:
    """A plugin of pytest: notes which tests passed and failed, and whether that is all that went wrong."""

    def __init__(self) -> None:
        self.passed: set[str] = set()
        self.failed: list[str] = []
        self.broken: list[str] = []
        """What is no failed test: a file that cannot be collected, a process that died."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a test's setup, call or teardown."""
        if report.failed and report.nodeid not in self.failed:
            self.failed.append(report.nodeid)
        if report.when == "call" and report.passed:
            self.passed.add(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note a file that cannot be collected."""
        if report.failed:
            self.broken.append(report.nodeid)

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, crashitem: str, report: Any, sched: Any) -> None:  # noqa: ARG002 xdist's names
        """Note a test that took its process with it."""
        self.broken.append(crashitem)

    def may_be_flaky(self) -> bool:
        """Whether those that failed deserve to be run alone."""
        few = 0 < len(self.failed) <= MOST_FAILED
        return few and not self.broken and all(nodeid.startswith(RETRIED) for nodeid in self.failed)


def main(arguments: list[str]) -> int:
    """Run the tests; return pytest's exit code, or 0 if all that failed passed alone."""
    first, *options = arguments
    outcomes = Outcomes()
    code = int(pytest.main(options, plugins=[outcomes]))
    if first == ALONE:
        return code or int(len(outcomes.passed) != 1)
    if code != pytest.ExitCode.TESTS_FAILED or not outcomes.may_be_flaky():
        return code
    for nodeid in outcomes.failed:
        print(f"\n== alone: {nodeid}", flush=True)
        command = [sys.executable, __file__, ALONE, "-n0", "-p", "no:randomly", nodeid]
        if subprocess.run(command, check=False).returncode:
            return code
    with Path(first).open("a", encoding="utf-8") as flaky:
        flaky.writelines(f"{nodeid}\n" for nodeid in outcomes.failed)
    return 0


if __name__ == "__main__":
    sys.path[0] = ""  # not the folder of this file: its modules are no tests' business
    sys.exit(main(sys.argv[1:]))
