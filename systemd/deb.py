"""Builds the Debian package of the program: `make deb`.

What `make install` puts below DESTDIR is the content, laid out as packages are: the program with its libraries below
/opt/channelindex, units and a link below /usr, the example configuration as a conffile. `dpkg-deb` makes a package of
it, with the files of debian/. Runs on Debian's own Python, which the package then depends on, and needs nothing else.
"""

import argparse
import gzip
import hashlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
PREFIX, BINDIR, LIBDIR, UNITDIR = "/opt/channelindex", "/usr/bin", "/usr/lib", "/usr/lib/systemd/system"
SCRIPTS = ("postinst", "prerm", "postrm")
MAINTAINER = "channelindex <channelindex@users.noreply.github.com>"
_COMPRESSION = ("-Zxz", "-z1")
"""A fifth larger than by default, in a fifth of the time."""
_CONTROL = """\
Package: channelindex
Version: {version}
Architecture: {architecture}
Maintainer: {maintainer}
Installed-Size: {size}
Depends: {python}, libc6 (>= {libc}), systemd
Suggests: redis-server
Section: database
Priority: optional
Homepage: https://github.com/channelindex/channelindex
Description: channel index of a Couchbase bucket
 Follows a bucket's change stream on any number of nodes and keeps in Redis
 what changed in each channel, so that "what changed in these channels since
 X?" is one read. It loses no change and invents none when processes die,
 nodes pause, stores fail over or the bucket rolls back.
"""
_CHANGES = """\
channelindex ({version}) stable; urgency=medium

  * See changelog.gz, or CHANGELOG.md of the source.

 -- {maintainer}  {date}
"""


class Refused(Exception):
    """It cannot be built; the message says why and what to do."""


def main(arguments: list[str]) -> int:
    """Build the package, as *arguments* say; the exit code."""
    parser = argparse.ArgumentParser(description="Build the Debian package of the channel index.")
    parser.add_argument(
        "--from", dest="source", default=str(PROJECT), help="what pip installs: this project, or a wheel"
    )
    parser.add_argument("--extras", default="node,serve,couchbase", help="what the package has beside the library")
    parser.add_argument("--out", type=Path, default=Path("dist"), help="folder of the package")
    given = parser.parse_args(arguments)
    try:
        python = debian_python()
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "root"
            stage(root, python, given.source, given.extras)
            print(pack(root, given.out, debian_version(source_version()), python.name))
    except (Refused, OSError, subprocess.CalledProcessError) as error:
        print(f"deb: {error}", file=sys.stderr)
        return 1
    return 0


def debian_python() -> Path:
    """The Python that runs this, which has to be one that a package of Debian brings.

    Raises:
        Refused: it is another one, or this is no Debian.
    """
    python = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    for program in ("dpkg", "dpkg-deb"):
        if shutil.which(program) is None:
            raise Refused(f"{program} is not there: packages are built on Debian and its like")
    if subprocess.run(["dpkg", "-S", python], capture_output=True, check=False).returncode != 0:
        raise Refused(f"{python} is of no package: name Debian's own, as in `make deb PY=/usr/bin/python3`")
    return python


def source_version() -> str:
    """The version of this source tree."""
    (version,) = re.findall(r'^__version__ = "(.+)"$', (PROJECT / "channelindex/__init__.py").read_text(), re.MULTILINE)
    return str(version)


def debian_version(version: str) -> str:
    """Return *version* so that Debian sorts it as Python does: a release candidate before its release."""
    return re.sub(r"(?<=\d)\.?(a|b|rc|dev)(?=\d)", r"~\1", version) + "-1"


def stage(root: Path, python: Path, source: str, extras: str) -> None:
    """Install into *root* as into a machine, by `make install`'s own program."""
    places = ["--prefix", PREFIX, "--bindir", BINDIR, "--libdir", LIBDIR, "--unitdir", UNITDIR]
    command = [python, HERE / "install.py", "install", "--destdir", root, *places, "--from", source, "--extras", extras]
    subprocess.run(command, check=True, stdout=sys.stderr)
    for folder in list(root.rglob("__pycache__")):
        shutil.rmtree(folder)  # made by postinst, for the very Python that is there


def pack(root: Path, out: Path, version: str, python: str) -> Path:
    """Make a package of *root*; return its path in *out*. *python*: the package of the Python that it runs on."""
    _write_documents(root, version)
    conffiles = sorted(f"/{path.relative_to(root)}" for path in (root / "etc").rglob("*") if path.is_file())
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    architecture = subprocess.run(["dpkg", "--print-architecture"], check=True, capture_output=True, text=True).stdout
    fields = {
        "version": version,
        "architecture": architecture.strip(),
        "maintainer": MAINTAINER,
        "size": sum(path.stat().st_size for path in files) // 1024,
        "python": python,
        "libc": platform.libc_ver()[1],
    }
    debian = root / "DEBIAN"
    debian.mkdir(exist_ok=True)
    (debian / "control").write_text(_CONTROL.format_map(fields), encoding="utf-8")
    (debian / "conffiles").write_text("".join(f"{path}\n" for path in conffiles), encoding="utf-8")
    (debian / "md5sums").write_text("".join(_md5_line(root, path) for path in files), encoding="utf-8")
    for name in SCRIPTS:
        shutil.copyfile(HERE / "debian" / name, debian / name)
        (debian / name).chmod(0o755)
    out.mkdir(parents=True, exist_ok=True)
    package = out / f"channelindex_{version}_{fields['architecture']}.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", *_COMPRESSION, "--build", root, package], check=True, stdout=sys.stderr
    )
    return package


def _write_documents(root: Path, version: str) -> None:
    documents = root / "usr/share/doc/channelindex"
    overrides = root / "usr/share/lintian/overrides/channelindex"
    for folder in (documents, overrides.parent):
        folder.mkdir(parents=True, exist_ok=True)
    for link in (root / "usr/share/man").rglob("*.[15]"):
        page = Path(f"{root}{link.readlink()}")
        link.with_name(f"{link.name}.gz").write_bytes(gzip.compress(page.read_bytes(), mtime=0))
        link.unlink()
    shutil.copyfile(HERE / "debian/copyright", documents / "copyright")
    shutil.copyfile(HERE / "debian/lintian-overrides", overrides)
    date = datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S +0000")
    changes = _CHANGES.format(version=version, maintainer=MAINTAINER, date=date)
    for name, data in {
        "changelog.gz": (PROJECT / "CHANGELOG.md").read_bytes(),
        "changelog.Debian.gz": changes.encode(),
    }.items():
        (documents / name).write_bytes(gzip.compress(data, mtime=0))


def _md5_line(root: Path, path: Path) -> str:
    digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    return f"{digest}  {path.relative_to(root)}\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
