"""The documents: what is made from code is up to date, what is named exists, and links lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from channelindex import exits
from channelindex.settings import SETTINGS, ServeSettings, WorkerSettings
from tests.support import house
from workers.cli import COMMANDS, build_parser, reference
from workers.node.decide import FATAL_CODES, RELEASE_TIMEOUT_S

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
UNIT = ROOT / "systemd" / "channelindex@.service"
SERVE_UNIT = ROOT / "systemd" / "channelindex-serve@.service"


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def unit_value(name: str, unit: Path = UNIT) -> str:
    (value,) = map(str, re.findall(rf"^{name}=(.*)$", unit.read_text(encoding="utf-8"), re.MULTILINE))
    return value


def anchors_of(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_internal_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        linked = (document.parent / path).resolve() if path else document
        assert linked.exists(), f"{document.name} links {target}"
        assert not anchor or anchor in anchors_of(linked), f"{document.name} links {target}"


def test_the_index_of_the_documents_leads_to_each_of_them() -> None:
    links = re.findall(r"^\* \[.+?\]\(([\w./-]+\.md)\)", text_of("docs/index.md"), re.MULTILINE)
    found = {(ROOT / "docs" / link).resolve() for link in links}
    assert not set(DOCUMENTS) - found - {ROOT / "docs" / "index.md"}, "name it in docs/index.md, the site's navigation"


def test_the_architecture_says_what_each_folder_of_code_holds() -> None:
    table = text_of("docs/architecture.md").partition("## Where things are")[2]
    for package in ("channelindex", "workers"):
        for folder in (ROOT / package).iterdir():
            named = f"| `{package}/{folder.name}/` |" in table
            assert named or not (folder / "__init__.py").exists(), f"{folder.name} is in no row"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_named_tests_and_modules_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:channelindex|coordinator|workers|tests|systemd|docs)/[\w./@-]+)`", text):
        assert (ROOT / path).exists(), f"{document.name} names {path}"
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    for name in re.findall(r"`(test_\w+)`", text):
        assert f"def {name}(" in tests, f"{document.name} names the test {name}"


def test_the_configuration_reference_is_what_make_docs_writes() -> None:
    assert text_of("docs/configuration.md") == reference.configuration()
    for setting in SETTINGS.values():
        assert f"`{setting.key}`" in text_of("docs/configuration.md")


def test_the_command_reference_is_what_make_docs_writes() -> None:
    assert text_of("docs/commands.md") == reference.commands()
    for name in COMMANDS:
        assert f"\n## {name}\n" in text_of("docs/commands.md")


def test_every_exit_code_is_explained() -> None:
    assert set(exits.MEANING_BY_CODE) == {value for value in vars(exits).values() if isinstance(value, int)}


def test_every_command_has_help_for_each_argument_and_an_example() -> None:
    _, parser_by_command = build_parser(COMMANDS)
    for name, parser in parser_by_command.items():
        assert f"channelindex {name}" in (parser.epilog or ""), name
        for action in parser._actions:
            assert action.help, f"{name} {action.dest}"


def test_help_of_the_program_imports_no_command() -> None:
    code = (
        "import sys; from workers.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\nprint(*sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    modules = out.splitlines()[-1].split()
    assert not {"redis", "rich", "workers.cli.changes"} & set(modules)


def test_the_readme_names_the_first_two_commands() -> None:
    assert "make demo" in text_of("README.md")
    assert "make test" in text_of("README.md")


def test_every_target_of_the_makefile_that_documents_name_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE))
    for document in DOCUMENTS:
        named = set(re.findall(r"`make ([a-z-]+)`", document.read_text(encoding="utf-8")))
        assert named <= targets, document.name


def test_the_unit_does_not_restart_what_a_restart_cannot_cure() -> None:
    codes = set(map(int, unit_value("RestartPreventExitStatus").split()))
    assert codes == {exits.USAGE, *FATAL_CODES}


def test_the_unit_gives_a_stopping_node_its_time() -> None:
    assert int(unit_value("TimeoutStopSec")) > WorkerSettings().drain_timeout_s + RELEASE_TIMEOUT_S


def test_the_unit_of_the_changes_feed_is_as_strict_and_gives_feeds_their_time_to_end() -> None:
    def sandbox(unit: Path) -> str:
        return unit.read_text(encoding="utf-8").partition("\nUser=")[2]

    assert sandbox(SERVE_UNIT) == sandbox(UNIT)
    assert unit_value("RestartPreventExitStatus", SERVE_UNIT) == unit_value("RestartPreventExitStatus")
    assert int(unit_value("TimeoutStopSec", SERVE_UNIT)) > ServeSettings().stop_timeout_s


def test_operations_explains_exactly_the_events_that_are_logged() -> None:
    section = text_of("docs/operations.md").partition("## Log lines")[2].partition("\n## ")[0]
    first_cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    explained = re.findall(r"`([a-z]+\.[a-z_]+)`", " ".join(first_cells))
    assert sorted(explained) == sorted(house.logged_events() | {"log.suppressed"})
