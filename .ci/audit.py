"""Asks pip-audit for known vulnerabilities of what is installed, and says how much it could ask of.

pip-audit alone calls it a success when the database knows none of the packages, as a mirror of PyPI without that data
does. So it is asked of a single package first: where even that cannot be audited, nothing else is asked, the outcome
is "not audited", and that is no failure. A vulnerability that is found is one.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

PROBE = "redis"
TIMEOUT_S = 300

Report = Mapping[str, Any]
"""What `pip-audit --format json` prints."""


def judge(report: Report | None) -> tuple[list[str], int]:
    """What there is to say of *report*, None where there is none, and the exit code."""
    packages = report["dependencies"] if report else []
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    audited = [package for package in packages if "skip_reason" not in package]
    if not audited:
        return ["NOT AUDITED: the database of vulnerabilities cannot be reached from here, or knows no package"], 0
    found = [
        f"{package['name']} {package['version']}: {each['id']}, fixed in {' or '.join(each['fix_versions']) or 'none'}"
        for package in audited
        for each in package["vulns"]
    ]
    told = [f"{len(audited)} packages audited, {len(found)} known vulnerabilities", *found]
    return told + ([f"not audited: {', '.join(skipped)}"] if skipped else []), 1 if found else 0


def ask(arguments: Sequence[str]) -> Report | None:
    """pip-audit's report, None where it made none."""
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        report: Report = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        return None
    return report


def main() -> int:
    """Audit this environment, if there is anything to ask; the exit code."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as requirements:
        requirements.write(f"{PROBE}=={version(PROBE)}\n")
        requirements.flush()
        report = ask(["--no-deps", "--disable-pip", "--requirement", requirements.name])
    lines, code = judge(report)
    if report and all("skip_reason" not in package for package in report["dependencies"]):
        lines, code = judge(ask(["--skip-editable"]))
    for line in lines:
        print(f"audit: {line}")
    return code


if __name__ == "__main__":
    sys.exit(main())
