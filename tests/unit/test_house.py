"""The shape of the code: one word for one thing, docstrings that state, assertions at boundaries."""

from collections.abc import Callable, Mapping

import pytest

from tests.support import house

COMMAND = "a command is named after what it does, and so is the library's part of it"
IMPLEMENTATION = "parallel implementations of one contract"

SHARED_MODULE_NAMES = {
    "base": "the contracts of decoders, feeds and stores",
    "compaction": IMPLEMENTATION,
    "compare": COMMAND,
    "config": COMMAND,
    "directories": IMPLEMENTATION,
    "errors": "ours, and the translation of each foreign library's into ours",
    "inspect": COMMAND,
    "keys": IMPLEMENTATION,
    "link": IMPLEMENTATION,
    "channel_repair": IMPLEMENTATION,
    "owner": IMPLEMENTATION,
    "partition_records": IMPLEMENTATION,
    "quarantine": COMMAND,
    "reader": IMPLEMENTATION,
    "rewind": COMMAND,
    "verify": COMMAND,
    "writer": IMPLEMENTATION,
}
SHARED_CLASS_NAMES = {
    "Keys": IMPLEMENTATION,
    "Link": IMPLEMENTATION,
}
ASSERTIONS_PER_100_FUNCTIONS = 20.0


@pytest.mark.parametrize(
    ("find", "allowed"),
    [
        pytest.param(house.modules_by_stem, SHARED_MODULE_NAMES, id="modules"),
        pytest.param(house.classes_by_name, SHARED_CLASS_NAMES, id="classes"),
    ],
)
def test_a_name_stands_for_one_thing_unless_there_is_a_reason(
    find: Callable[[], Mapping[str, list[str]]], allowed: Mapping[str, str]
) -> None:
    found = find()
    unexplained = {name: paths for name, paths in found.items() if name not in allowed}
    assert not unexplained, "give one of them another name, or add the reason here"
    assert not allowed.keys() - found.keys(), "no longer shared: take them off the list"


def test_docstrings_state_and_do_not_ask() -> None:
    assert not house.weak_openings(), "begin with a verb, or with what is returned"


def test_assertions_do_not_become_fewer() -> None:
    assert house.assertions_per_100_functions() >= ASSERTIONS_PER_100_FUNCTIONS


def test_the_measures_see_what_they_measure(tmp_path) -> None:
    for name, source in {
        "channelindex/one.py": '"""What it is."""\n\n\nclass Thing:\n    """A thing."""\n',
        "workers/one.py": '"""Does."""\nimport workers.two\n\n\nclass _Thing:\n    """How it is."""\n',
        "workers/two.py": '"""Does."""\n\n\ndef f() -> None:\n    """Do."""\n    assert True\n',
    }.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(source, encoding="utf-8")
    assert house.modules_by_stem(tmp_path) == {"one": ["channelindex/one.py", "workers/one.py"]}
    assert house.classes_by_name(tmp_path) == {"Thing": ["channelindex/one.py", "workers/one.py"]}
    assert [line.partition(" ")[2] for line in house.weak_openings(tmp_path)] == ["What it is.", "How it is."]
    assert house.assertions_per_100_functions(tmp_path) == 100.0
    assert house.n_floors(house.imports_of("workers", tmp_path)) == 2
