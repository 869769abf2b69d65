"""Configurations as no one would write them: one line per problem, quickly, whatever they hold."""

from collections.abc import Callable
from pathlib import Path

import pytest

from channelindex.config import MAX_FILE_BYTES, MAX_PROBLEMS, ConfigProblems, load_config

RIGHT = b'[source]\nurl = "couchbase://h/b"\n[index]\nstore = "redis://h/0"\n'


def problems_of(path: Path | None, environ: dict[str, str] | None = None) -> tuple[str, ...]:
    with pytest.raises(ConfigProblems) as caught:
        load_config(path, environ or {}, {})
    for problem in caught.value.problems:
        assert problem.isprintable(), "a message is one line, without what a terminal would obey"
        assert len(problem) < 1_000
    return caught.value.problems


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (bytes(range(256)), "'utf-8' codec can't decode"),
        (b"\x7fELF" + b"\0" * 100, "Invalid statement"),
        (RIGHT + b"\0", "Invalid statement"),
        (b"\xef\xbb\xbf" + RIGHT, "Invalid statement"),
        (RIGHT.decode().encode("utf-16"), "'utf-8' codec can't decode"),
        (b"x = " + b"[" * 100_000, "nested too deeply"),
        (b"x = " + b"{a = " * 3_000 + b"1" + b"}" * 3_000, "nested too deeply"),
        (RIGHT + b"[workers]\nfeed_workers = " + b"9" * 5_000, "integer string conversion"),
        (b"#" * (MAX_FILE_BYTES + 1), "larger than 1048576 bytes"),
        (RIGHT * 2, "Cannot declare"),
    ],
)
def test_a_file_that_is_no_configuration_is_one_problem(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "c.toml"
    path.write_bytes(content)
    (problem,) = problems_of(path)
    assert problem.startswith(f"the configuration file {path} cannot be read: ")
    assert reason in problem


def directory(path: Path) -> None:
    path.mkdir()


def loop(path: Path) -> None:
    path.symlink_to(path)


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("make", "reason"),
    [(directory, "Is a directory"), (loop, "symbolic links"), (sparse, "larger than"), (endless, "larger than")],
)
def test_a_path_that_leads_to_no_file_of_text_is_one_problem(
    tmp_path: Path, make: Callable[[Path], None], reason: str
) -> None:
    path = tmp_path / "c.toml"
    make(path)
    (problem,) = problems_of(path)
    assert reason in problem
    (problem,) = problems_of(_file(tmp_path, RIGHT.replace(b"[index]", f'password_file = "{path}"\n[index]'.encode())))
    assert problem.startswith("source.password_file")
    assert reason in problem


@pytest.mark.parametrize("path", [Path("a\0b"), Path("a" * 5_000), Path("\ud800")])
def test_a_path_that_no_file_can_have_is_one_problem(path: Path) -> None:
    (problem,) = problems_of(path)
    assert problem.startswith("the configuration file")


def _file(folder: Path, content: bytes) -> Path:
    path = folder / "hostile.toml"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"source = 1", "must be a table, [source]"),
        (b"[[source]]\nurl = 'x'", "must be a table, [source]"),
        (b"[source.url]\na = 1", "must be text"),
        (b"[source.url" + b".a" * 900 + b"]\nx = 1", "must be text"),
        (b'[source]\n"\\u001b[2J\\n" = 1', "unknown key"),
        (b'[source]\n"' + b"k" * 100_000 + b'" = 1', "unknown key"),
        (b'[log]\nlevel = "\\u001b[2J\\n"', "control characters"),
        (b'[node]\nname = "' + b"x" * 100_000 + b'"', "must be 1 to 64 letters"),
        (b'[node]\nrun_dir = "a\\u0000b"', "control characters"),
        (b'[source]\nurl = "couchbase://h/b\\u0000"', "control characters"),
        (b'[source]\npassword_file = "a\\u0000b"', "control characters"),
        (b"[coordination]\nttl_s = nan", "must be 1 to 600"),
        (b"[coordination]\nttl_s = -inf", "must be 1 to 600"),
        (b"[coordination]\nttl_s = 1" + b"0" * 400, "int too large"),
        (b"[workers]\nfeed_workers = 0x" + b"f" * 10_000, "must be 1 to 64"),
        (b"[workers]\nfeed_workers = -9223372036854775809", "must be 1 to 64"),
        (b"[workers]\nfeed_workers = 1979-05-27", "must be a whole number"),
        (b"[workers]\nfeed_workers = true", "must be a whole number"),
    ],
)
def test_a_hostile_value_is_a_problem_that_names_its_key(tmp_path: Path, text: bytes, problem: str) -> None:
    assert any(problem in told for told in problems_of(_file(tmp_path, text)))


def test_a_file_of_nothing_but_unknown_keys_is_reported_in_part(tmp_path: Path) -> None:
    path = _file(tmp_path, b"[x]\n" + b"".join(b"k%d=1\n" % number for number in range(100_000)))
    problems = problems_of(path)
    assert len(problems) == MAX_PROBLEMS + 3  # and that there are more, and the two keys that are missing
    assert "there are more problems" in problems


@pytest.mark.parametrize(
    ("variable", "value", "problem"),
    [
        ("CHANNELINDEX_INDEX_STOR\udcff\n", "1", "unknown key"),
        ("CHANNELINDEX_NODE_NAME", "\udc80", "control characters"),
        ("CHANNELINDEX_SOURCE_USER", "\udc80", "control characters"),
        ("CHANNELINDEX_WORKERS_FEED_WORKERS", "9" * 5_000, "must be a whole number"),
        ("CHANNELINDEX_WORKERS_FEED_WORKERS", "0x2", "must be a whole number"),
        ("CHANNELINDEX_COORDINATION_TTL_S", "nan", "must be 1 to 600"),
        ("CHANNELINDEX_COORDINATION_TTL_S", "1e999", "must be 1 to 600"),
        ("CHANNELINDEX_SOURCE_STAR_CHANNEL", "yes", "must be true or false"),
        ("CHANNELINDEX_INDEX_STORE", "\x1b]0;x\x07", "control characters"),
    ],
)
def test_garbage_in_the_environment_is_a_problem(variable: str, value: str, problem: str) -> None:
    assert any(problem in told for told in problems_of(None, {variable: value}))


@pytest.mark.parametrize("variable", ["CHANNELINDEX_", "CHANNELINDEX_\udcff\n"])
def test_garbage_that_may_be_of_somebody_else_is_a_warning_on_one_line(variable: str) -> None:
    (warning,) = load_config(
        None, {variable: "1"}, {"source.url": "couchbase://h/b", "index.store": "memory://"}
    ).warnings
    assert "sets no key" in warning
    assert warning.isprintable()
