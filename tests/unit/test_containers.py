"""The example of a container is what the code needs: checked by text, where no tool that builds it is at hand."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from channelindex.config import REQUIRED_TO_RUN, load_config
from channelindex.settings import SETTINGS, WorkerSettings
from workers.cli import COMMANDS
from workers.node.decide import RELEASE_TIMEOUT_S

ROOT = Path(__file__).resolve().parents[2]
CONTAINERFILE = (ROOT / "containers" / "Containerfile").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "containers" / "compose.yaml").read_text(encoding="utf-8"))
NODES = [name for name in COMPOSE["services"] if name.startswith("node-")]


def test_the_image_is_built_from_a_supported_python_with_an_extra_that_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for version in re.findall(r"python:(\d+\.\d+)", CONTAINERFILE):
        assert f"Programming Language :: Python :: {version}" in project["classifiers"]
    for extra in re.findall(r"\.\[([\w,-]+)\]", CONTAINERFILE):
        assert set(extra.split(",")) <= project["optional-dependencies"].keys()


def test_instructions_are_known_and_the_last_stage_has_an_account_of_its_own() -> None:
    joined = re.sub(r"\\\n", " ", CONTAINERFILE)
    words = [line.split()[0] for line in joined.splitlines() if line and not line.startswith("#")]
    assert set(words) <= {"FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "EXPOSE", "STOPSIGNAL", "ENTRYPOINT", "CMD"}
    last_stage = joined.rpartition("FROM ")[2]
    assert re.search(r"^USER channelindex$", last_stage, re.MULTILINE)
    command = re.search(r'^CMD \["(\w+)"\]$', last_stage, re.MULTILINE)
    assert command
    assert command[1] in COMMANDS


@pytest.mark.parametrize("name", NODES)
def test_each_node_of_the_compose_file_has_a_valid_configuration(name: str, tmp_path: Path) -> None:
    environ = {key: str(value) for key, value in COMPOSE["services"][name]["environment"].items()}
    (tmp_path / "password").write_text("secret", encoding="utf-8")
    password_file = SETTINGS["source.password_file"].variable
    assert environ[password_file] == f"/run/secrets/{COMPOSE['services'][name]['secrets'][0]}"
    environ |= {"CHANNELINDEX_SOURCE_URL": "couchbase://10.0.0.11/orders", password_file: str(tmp_path / "password")}
    config = load_config(None, environ, {}, REQUIRED_TO_RUN)
    assert config.warnings == ()
    assert config.node.name == name
    assert config.index.store.startswith(f"redis://{COMPOSE['services'][name]['depends_on'][0]}:")
    port = config.metrics.listen.rpartition(":")[2]
    assert f"127.0.0.1:{port}/healthz" in str(COMPOSE["services"][name]["healthcheck"]["test"])
    assert f"EXPOSE {port}" in CONTAINERFILE


@pytest.mark.parametrize("name", NODES)
def test_a_node_has_the_time_that_its_drain_takes(name: str) -> None:
    grace_s = int(COMPOSE["services"][name]["stop_grace_period"].removesuffix("s"))
    assert grace_s > WorkerSettings().drain_timeout_s + RELEASE_TIMEOUT_S


def test_nothing_secret_gets_into_the_image() -> None:
    ignored = (ROOT / "containers" / "Containerfile.containerignore").read_text(encoding="utf-8").splitlines()
    assert {".git", ".venv*", "*.password"} <= set(ignored)
    assert COMPOSE["secrets"]["source.password"]["file"].endswith(".password")


def test_the_redis_of_the_compose_file_evicts_nothing() -> None:
    command = COMPOSE["services"]["redis"]["command"]
    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"
