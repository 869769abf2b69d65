"""Nothing that came from outside is ever turned into objects by something that can run code."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("channelindex", "coordinator", "devbucket", "workers")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
FORBIDDEN_MODULES = {"pickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "jsonpickle", "yaml", "code"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
PIPES = {
    # multiprocessing pickles what goes through a pipe. Both ends of these are one program: a process and the child that
    # it has just forked, on an anonymous pair of descriptors that nobody else can open.
    "devbucket/process.py",
    "workers/node/run_in_child.py",
}


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]


def called(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_can_make_code_of_data(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = set(imported(tree))
    assert not modules & FORBIDDEN_MODULES
    assert not set(called(tree)) & FORBIDDEN_CALLS
    assert ("multiprocessing" in modules) == (str(path.relative_to(ROOT)) in PIPES)
