"""`make install` tells pip what the service needs, wherever the program comes from."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

PATH = Path(__file__).resolve().parents[2] / "systemd" / "install.py"


@pytest.fixture(scope="module")
def install() -> ModuleType:
    spec = importlib.util.spec_from_file_location("systemd_install", PATH)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["systemd_install"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("source", "requirement"),
    [
        ("channelindex", "channelindex[node]"),
        ("channelindex==0.2.0", "channelindex[node]==0.2.0"),
        ("channelindex >= 0.2, < 1", "channelindex[node] >= 0.2, < 1"),
    ],
)
def test_a_name_gets_the_extras_before_its_version(install: ModuleType, source: str, requirement: str) -> None:
    assert install._requirement(source, "node") == requirement


@pytest.mark.parametrize("source", [".", "dist/channelindex-0.2.0-py3-none-any.whl", "channelindex-0.2.0.tar.gz"])
def test_what_lies_here_is_no_name(install: ModuleType, source: str) -> None:
    assert install._requirement(source, "node") == f"{Path(source).resolve()}[node]"


def test_a_folder_or_a_wheel_gets_them_behind_its_path(install: ModuleType, tmp_path: Path) -> None:
    wheel = tmp_path / "channelindex-0.2.0-py3-none-any.whl"
    wheel.touch()
    assert install._requirement(str(wheel), "node,couchbase") == f"{wheel}[node,couchbase]"
    assert install._requirement(str(tmp_path), "node") == f"{tmp_path}[node]"
