"""Nothing that came from outside is ever turned into objects by something that can run code."""

import ast
from collections.abc import Iterator

from tests.support import house

FORBIDDEN_MODULES = {"pickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "jsonpickle", "yaml", "code"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
PIPES = {
    # multiprocessing pickles what goes through a pipe. Both ends of these are one program: a process and the child that
    # it has just forked, on an anonymous pair of descriptors that nobody else can open.
    "devbucket/process.py",
    "workers/node/run_in_child.py",
}


def imported(module: house.Module) -> Iterator[str]:
    for node in module.nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]


def called(module: house.Module) -> Iterator[str]:
    for node in module.nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id


def test_no_module_can_make_code_of_data() -> None:
    for module in house.modules():
        modules = set(imported(module))
        assert not modules & FORBIDDEN_MODULES, module.path
        assert not set(called(module)) & FORBIDDEN_CALLS, module.path
        assert ("multiprocessing" in modules) == (module.path in PIPES), module.path
