"""The Debian package: built small to look into it, and built whole to install, upgrade, remove and purge it."""

import gzip
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEBIANS_PYTHON = Path("/usr/bin/python3")

pytestmark = [
    pytest.mark.packaging,
    pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="packages of Debian are built where dpkg-deb is"),
]


@pytest.fixture(scope="module")
def deb() -> ModuleType:
    spec = importlib.util.spec_from_file_location("systemd_deb", ROOT / "systemd" / "deb.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def output_of(*command: object) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_package_has_its_control_files_and_conffiles(deb: ModuleType, tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("etc/channelindex/example.toml", "opt/channelindex/bin/channelindex"):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_text("content\n")
    package = deb.pack(root, tmp_path / "out", deb.debian_version("1.2.0rc1"), "python3.11")
    assert package.name.startswith("channelindex_1.2.0~rc1-1_")
    assert "python3.11, libc6" in output_of("dpkg-deb", "--field", package, "Depends")
    control = tmp_path / "control"
    output_of("dpkg-deb", "--control", package, control)
    assert (control / "conffiles").read_text() == "/etc/channelindex/example.toml\n"
    assert "opt/channelindex/bin/channelindex\n" in (control / "md5sums").read_text()
    for script in deb.SCRIPTS:
        assert os.access(control / script, os.X_OK)
        output_of("sh", "-n", control / script)
    content = tmp_path / "content"
    output_of("dpkg-deb", "--extract", package, content)
    changelog = content / "usr/share/doc/channelindex/changelog.Debian.gz"
    assert gzip.decompress(changelog.read_bytes()).startswith(b"channelindex (1.2.0~rc1-1) ")
    assert " root/root " in output_of("dpkg-deb", "--contents", package).splitlines()[0]


def test_versions_sort_as_pythons_do(deb: ModuleType) -> None:
    assert deb.debian_version(deb.source_version()).startswith(deb.source_version())
    for older, newer in (("1.2.0.dev1", "1.2.0rc1"), ("1.2.0rc1", "1.2.0"), ("1.2.0", "1.10.0")):
        output_of("dpkg", "--compare-versions", deb.debian_version(older), "lt", deb.debian_version(newer))


def test_a_python_of_no_package_is_refused(deb: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "base_prefix", "/nowhere")
    with pytest.raises(deb.Refused, match="PY=/usr/bin/python3"):
        deb.debian_python()


class Machine:
    """This machine's files below *folder*, to be changed at will: what is written there is not written here."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        upper, work = folder / "upper", folder / "work"
        for each in (self.root, upper, work):
            each.mkdir()
        options = f"lowerdir=/,upperdir={upper},workdir={work}"
        done = subprocess.run(
            ["mount", "-t", "overlay", "overlay", "-o", options, self.root], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"no scratch root: mount says {done.stderr.strip()}")
        for name in ("proc", "dev"):
            subprocess.run(["mount", "--bind", f"/{name}", self.root / name], check=True)

    def run(self, *command: object, expected: int = 0) -> str:
        """The output of *command* there."""
        environ = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "HOME": "/root"}
        done = subprocess.run(
            ["chroot", self.root, *map(str, command)], env=environ, capture_output=True, text=True, check=False
        )
        assert done.returncode == expected, done.stdout + done.stderr
        return done.stdout

    def path(self, name: str) -> Path:
        """Where the file *name* of that machine is here."""
        return self.root / name.lstrip("/")

    def close(self) -> None:
        subprocess.run(["umount", self.root / "proc", self.root / "dev", self.root], check=True)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    if os.getuid() != 0:
        pytest.skip("a scratch root takes root")
    made = Machine(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory, deb: ModuleType) -> tuple[Path, Path]:
    """The package of this tree, and the same of a later version."""
    folder = tmp_path_factory.mktemp("deb")
    output_of("make", "-C", ROOT, "deb", f"PY={DEBIANS_PYTHON}", f"OUT={folder}", "DEB_EXTRAS=node,serve")
    (package,) = folder.glob("*.deb")
    later = folder / "later"
    output_of("dpkg-deb", "--raw-extract", package, later)
    depends = output_of("dpkg-deb", "--field", package, "Depends")
    example = later / "etc/channelindex/example.toml"
    example.write_text(f"{example.read_text()}\n# later\n")
    return package, deb.pack(later, folder, "99-1", depends.partition(",")[0])


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_it_is_installed_upgraded_removed_and_purged(packages: tuple[Path, Path], machine: Machine) -> None:
    package, later = packages
    machine.run("dpkg", "--install", package)
    version = machine.run("channelindex", "--version")
    assert version.split()[-1] in package.name
    assert machine.run("id", "channelindex")
    assert machine.run("stat", "-c", "%a %U %G", "/etc/channelindex").split() == ["2750", "root", "channelindex"]
    assert machine.run("man", "-w", "channelindex", "channelindex.toml").count("/usr/share/man") == 2
    machine.run("dpkg", "--verify", "channelindex")
    orders = machine.path("/etc/channelindex/orders.toml")
    orders.write_text("# mine\n")
    example = machine.path("/etc/channelindex/example.toml")
    example.write_text("# edited\n")
    machine.run("dpkg", "--force-confold", "--install", later)
    assert example.read_text() == "# edited\n", "a conffile that was edited is the operator's"
    assert machine.path("/etc/channelindex/example.toml.dpkg-dist").exists()
    assert machine.run("channelindex", "config", "show")
    machine.run("dpkg", "--remove", "channelindex")
    assert not machine.path("/opt/channelindex").exists()
    assert not machine.path("/usr/bin/channelindex").is_symlink()
    assert example.exists()
    machine.run("dpkg", "--purge", "channelindex")
    assert not example.exists()
    assert orders.exists(), "what the package did not write it does not remove"
    assert "channelindex" not in machine.run("dpkg-query", "--show", "-f", "${Package}\n")


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.skipif(shutil.which("lintian") is None, reason="lintian is not installed")
def test_lintian_finds_no_error(packages: tuple[Path, Path]) -> None:
    output_of("lintian", "--fail-on", "error", packages[0])
