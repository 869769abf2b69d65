"""`make release-check` finds what would make a bad release."""

import importlib.util
import io
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PATH = Path(__file__).resolve().parents[2] / ".ci" / "release_check.py"
CHANGELOG = "# Changelog\n\n## [Unreleased]\n\n## [0.2.0] - 2026-11-27\n\n* All.\n"
METADATA = """Metadata-Version: 2.4
Name: channelindex
Version: 0.2.0
Project-URL: Source, https://example.org/c
Project-URL: Changelog, https://example.org/c/CHANGELOG.md
Project-URL: Documentation, https://example.org/c/docs
Project-URL: Issues, https://example.org/c/issues
Classifier: Programming Language :: Python :: 3.11

[Docs](https://example.org/c/docs) and [below](#below)
"""


@pytest.fixture(scope="module")
def release_check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release_check", PATH)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["release_check"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def release(release_check: ModuleType, tmp_path: Path) -> Any:
    """A release with metadata, and nothing else in its files."""
    wheel, sdist = tmp_path / "c.whl", tmp_path / "c.tar.gz"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("channelindex-0.2.0.dist-info/METADATA", METADATA)
    tarfile.open(sdist, "w:gz").close()
    compiled = tmp_path / "channelindex-0.2.0-cp311-abi3-manylinux_2_17_x86_64.whl"
    with zipfile.ZipFile(compiled, "w") as archive:
        archive.writestr(release_check.KERNEL, b"")
    return release_check.Release("0.2.0", (), CHANGELOG, wheel, sdist, compiled)


def rewrite(release: Any, metadata: str, *names: str) -> None:
    with zipfile.ZipFile(release.wheel, "w") as archive:
        archive.writestr("channelindex-0.2.0.dist-info/METADATA", metadata)
        for name in names:
            archive.writestr(name, "")


def test_what_is_right_is_no_problem(release_check: ModuleType, release: Any) -> None:
    checks = (
        release_check.check_tag,
        release_check.check_changelog,
        release_check.check_metadata,
        release_check.check_compiled,
    )
    for check in checks:
        assert [*check(release)] == []


@pytest.mark.parametrize(("tags", "n_problems"), [((), 0), (("v0.2.0",), 0), (("v0.1.0",), 1)])
def test_a_tag_has_to_name_the_version(
    release_check: ModuleType, release: Any, tags: tuple[str, ...], n_problems: int
) -> None:
    tagged = replace(release, tags=tags)
    assert len([*release_check.check_tag(tagged)]) == n_problems


@pytest.mark.parametrize(
    ("changelog", "problem"),
    [
        (CHANGELOG.replace("0.2.0", "0.1.0"), "no section"),
        (CHANGELOG.replace(" - 2026-11-27", ""), "no section"),
        (CHANGELOG.replace("[Unreleased]\n", "[Unreleased]\n\n* More.\n"), "under Unreleased"),
    ],
)
def test_a_changelog_that_is_not_closed_is_found(
    release_check: ModuleType, release: Any, changelog: str, problem: str
) -> None:
    changed = replace(release, changelog=changelog)
    (found,) = release_check.check_changelog(changed)
    assert problem in found


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("Version: 0.2.0", "Version: 0.1.0", "version 0.1.0"),
        ("Project-URL: Issues", "Project-URL: Other", "addresses"),
        ("Classifier: Programming Language :: Python :: 3.11\n", "", "classifier"),
        ("(https://example.org/c/docs)", "(docs/library.md)", "links docs/library.md"),
    ],
)
def test_metadata_that_mislead_are_found(
    release_check: ModuleType, release: Any, old: str, new: str, problem: str
) -> None:
    rewrite(release, METADATA.replace(old, new))
    (found,) = release_check.check_metadata(release)
    assert problem in found


def test_a_second_name_in_site_packages_and_missing_files_are_found(release_check: ModuleType, release: Any) -> None:
    rewrite(release, METADATA, "workers/__init__.py", "channelindex/py.typed")
    found = [*release_check.check_wheel(release)]
    assert "the wheel puts workers into site-packages" in found
    assert "the wheel lacks channelindex/_node/workers/cli/__init__.py" in found
    assert "the wheel lacks channelindex/py.typed" not in found


def test_a_compiled_wheel_of_one_machine_or_without_a_kernel_is_found(release_check: ModuleType, release: Any) -> None:
    local = release.compiled.with_name("channelindex-0.2.0-cp311-abi3-linux_x86_64.whl")
    with zipfile.ZipFile(local, "w") as archive:
        archive.writestr("libgcc_s.so", b"")
    found = [*release_check.check_compiled(replace(release, compiled=local))]
    assert [problem.split()[0] for problem in found] == [local.name, "the", "the"]
    assert release_check.KERNEL in found[1]


def test_a_source_distribution_without_its_tests_is_found(release_check: ModuleType, release: Any) -> None:
    with tarfile.open(release.sdist, "w:gz") as archive:
        for name in release_check.IN_THE_SDIST[1:]:
            archive.addfile(tarfile.TarInfo(f"channelindex-0.2.0/{name}"), io.BytesIO())
    (found,) = release_check.check_sdist(release)
    assert release_check.IN_THE_SDIST[0] in found
