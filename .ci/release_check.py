"""Says whether this tree can be released: `make release-check` builds into FOLDER and looks at what came out.

The version is in `channelindex/__init__.py` and nowhere else, so that an archive without a history builds as well as a
clone; a tag on this commit has to name the same one.
"""

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KERNEL = "channelindex/_kernel.abi3.so"
IN_THE_WHEEL = ("channelindex/py.typed", "channelindex/__main__.py", "channelindex/_node/workers/cli/__init__.py")
FOLDERS = {"channelindex": "", **dict.fromkeys(("coordinator", "devbucket", "workers"), "channelindex/_node/")}
"""The folders whose code the wheel has, and where."""
IN_THE_SDIST = ("tests/conftest.py", "docs/operations.md", "systemd/install.py", "Makefile", ".ci/run", "CHANGELOG.md")


@dataclass(frozen=True)
class Release:
    """What was built, and the version that it has to be."""

    version: str
    tags: tuple[str, ...]
    changelog: str
    wheel: Path
    """For every machine: without the compiled kernel."""
    sdist: Path
    compiled: Path
    """The wheel with the kernel."""

    @property
    def wheel_names(self) -> list[str]:
        """The files of the wheel."""
        return zipfile.ZipFile(self.wheel).namelist()

    @property
    def sdist_names(self) -> list[str]:
        """The files of the source distribution, without its own folder."""
        with tarfile.open(self.sdist) as archive:
            return [name.partition("/")[2] for name in archive.getnames()]

    @property
    def metadata(self) -> Message:
        """The metadata of the wheel; its body is the README as PyPI shows it."""
        (name,) = [name for name in self.wheel_names if name.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(zipfile.ZipFile(self.wheel).read(name))


def check_tag(release: Release) -> Iterator[str]:
    """A tag on this commit names the version."""
    expected = f"v{release.version}"
    if release.tags and expected not in release.tags:
        yield f"the commit has the tag {', '.join(release.tags)} and not {expected}: correct channelindex/__init__.py"


def check_changelog(release: Release) -> Iterator[str]:
    """The changelog has a section of the version, with its date, and nothing waits above it."""
    heads = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", release.changelog, re.MULTILINE)
    if dict(heads).get(release.version, "") == "":
        yield f'CHANGELOG.md has no section "## [{release.version}] - YYYY-MM-DD"'
    unreleased = release.changelog.partition("## [Unreleased]")[2].partition("\n## ")[0]
    if "\n* " in unreleased:
        yield "CHANGELOG.md has lines under Unreleased: move them into the section of the version"


def check_wheel(release: Release) -> Iterator[str]:
    """The wheel has our name alone at its top, and the parts of the program inside."""
    tops = {name.partition("/")[0] for name in release.wheel_names}
    if strangers := tops - {"channelindex", f"channelindex-{release.version}.dist-info"}:
        yield f"the wheel puts {', '.join(sorted(strangers))} into site-packages"
    present = {*release.wheel_names}
    yield from (f"the wheel lacks {name}" for name in IN_THE_WHEEL if name not in present)
    for folder, inside in (
        ("channelindex", ""),
        ("coordinator", "channelindex/_node/"),
        ("workers", "channelindex/_node/"),
    ):
        for path in (ROOT / folder).rglob("*"):
            name = f"{inside}{path.relative_to(ROOT)}"
            if path.suffix in {".py", ".lua"} and name not in present:
                yield f"the wheel lacks {name}"


def check_compiled(release: Release) -> Iterator[str]:
    """The compiled wheel is for every Linux with its processor, and has the kernel beside what the other one has."""
    if not re.search(r"-cp311-abi3-manylinux\S+\.whl$", release.compiled.name):
        yield f"{release.compiled.name} is not for every Python from 3.11 on, or not for every Linux"
    names = {name for name in zipfile.ZipFile(release.compiled).namelist() if _is_code(name)}
    expected = {*(name for name in release.wheel_names if _is_code(name)), KERNEL}
    yield from (f"the compiled wheel has {name} too much or lacks it" for name in sorted(names ^ expected))


def _is_code(name: str) -> bool:
    return ".dist-info/" not in name and not name.endswith("/")


def check_sdist(release: Release) -> Iterator[str]:
    """The source distribution has what its tests and its `make install` need."""
    present = {*release.sdist_names}
    yield from (f"the source distribution lacks {name}" for name in IN_THE_SDIST if name not in present)


def check_metadata(release: Release) -> Iterator[str]:
    """Version, addresses, classifiers of every Python, and a README whose links lead somewhere from anywhere."""
    metadata = release.metadata
    if metadata["Version"] != release.version:
        yield f"the wheel has version {metadata['Version']}"
    addresses = dict(line.split(", ", 1) for line in metadata.get_all("Project-URL", []))
    if not {"Source", "Changelog", "Documentation", "Issues"} <= set(addresses):
        yield f"pyproject.toml names the addresses {', '.join(addresses) or 'none'}: some are missing"
    classifiers = metadata.get_all("Classifier", [])
    if not any(line.startswith("Programming Language :: Python :: 3.") for line in classifiers):
        yield "no classifier names a version of Python"
    for link in re.findall(r"\]\(([^)\s]+)\)", metadata.get_payload()):
        if not link.startswith(("https://", "#")):
            yield f"the README links {link}, which PyPI does not have"


def check_twine(release: Release) -> Iterator[str]:
    """PyPI would take all files."""
    command = [sys.executable, "-m", "twine", "check", "--strict"]
    command += map(str, (release.wheel, release.compiled, release.sdist))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        yield f"twine: {' '.join((done.stdout + done.stderr).split())}"


CHECKS: tuple[Callable[[Release], Iterator[str]], ...] = (
    check_tag,
    check_changelog,
    check_wheel,
    check_compiled,
    check_sdist,
    check_metadata,
    check_twine,
)


def build(folder: Path) -> Release:
    """Build the source distribution, and two wheels, into *folder*, which is emptied before."""
    shutil.rmtree(folder, ignore_errors=True)
    _run("build", "--outdir", folder, ROOT, kernel="on")
    (sdist,) = folder.glob("*.tar.gz")
    (local,) = folder.glob("*.whl")
    _run("auditwheel", "repair", "--wheel-dir", folder, local)  # it finds out which systems it runs on
    local.unlink()
    (compiled,) = folder.glob("*.whl")
    _run("build", "--wheel", "--outdir", folder, ROOT, kernel="off")
    (wheel,) = {*folder.glob("*.whl")} - {compiled}
    git = ["git", "-C", str(ROOT), "tag", "--points-at", "HEAD"]
    tags = (
        subprocess.run(git, capture_output=True, text=True, check=False).stdout.split() if shutil.which("git") else []
    )
    source = (ROOT / "channelindex/__init__.py").read_text(encoding="utf-8")
    (version,) = re.findall(r'^__version__ = "(.+)"$', source, re.MULTILINE)
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    return Release(version, tuple(tags), changelog, wheel, sdist, compiled)


def _run(module: str, *arguments: object, kernel: str = "") -> None:
    """Run a module; with its own tools on PATH, where it looks for them."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environ = {**os.environ, "PATH": path, "CHANNELINDEX_BUILD_KERNEL": kernel}
    subprocess.run([sys.executable, "-m", module, *map(str, arguments)], check=True, capture_output=True, env=environ)


def main(folder: Path) -> int:
    """Build and check; the exit code."""
    try:
        release = build(folder)
    except subprocess.CalledProcessError as error:
        print(error.stdout.decode()[-2000:], error.stderr.decode()[-2000:], sep="\n", file=sys.stderr)
        return 1
    problems = [(check, problem) for check in CHECKS for problem in check(release)]
    for check in CHECKS:
        found = [problem for checked, problem in problems if checked is check]
        print(f"{'FAILED' if found else 'ok':6} {(check.__doc__ or '').strip()}")
        for problem in found:
            print(f"       {problem}")
    for path in (release.sdist, release.wheel, release.compiled):
        print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
