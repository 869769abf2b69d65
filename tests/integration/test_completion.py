"""Shells complete commands, options, values and files by what `channelindex completion` prints."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.running import cli


def completed(script: Path, folder: Path, *words: str) -> list[str]:
    """What bash offers behind *words*, of which the last is the one being typed."""
    typed = " ".join(f"'{word}'" for word in ("channelindex", *words))
    line = f"source {script}; COMP_WORDS=({typed}); COMP_CWORD={len(words)}; COMP_TYPE=9; _shtab_channelindex; "
    done = subprocess.run(
        ["bash", "-c", f'{line} printf "%s\\n" "${{COMPREPLY[@]}}"'],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    )
    return sorted(word.strip() for word in done.stdout.split())


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "channelindex.bash"
    path.write_text(cli("completion", "bash").stdout, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("un",), ["undrain"]),
        (("re",), ["rebalance", "rebuild", "redis", "release", "repair", "rewind"]),
        (("status", "--ma"), ["--max-lag"]),
        (("config", "sh"), ["show"]),
        (("changes", "a", "--config", "ord"), ["orders.toml"]),
    ],
)
def test_bash_offers_what_fits(script: Path, tmp_path: Path, words: tuple[str, ...], offered: list[str]) -> None:
    (tmp_path / "orders.toml").touch()
    assert completed(script, tmp_path, *words) == offered


def test_zsh_gets_a_script_that_it_can_read(tmp_path: Path) -> None:
    text = cli("completion", "zsh").stdout
    assert text.startswith("#compdef channelindex\n")
    assert "--max-lag" in text
    if zsh := shutil.which("zsh"):
        path = tmp_path / "_channelindex"
        path.write_text(text, encoding="utf-8")
        subprocess.run([zsh, "-n", path], check=True)
