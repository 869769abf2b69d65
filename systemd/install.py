"""Installs the program for systemd, goes back to the version before, or removes it: `make install` and its like.

    PREFIX/                          a virtual environment of its own, with the program and what it needs
    PREFIX/share/                    documents, alert rules, dashboard, manual pages
    PREFIX.old/                      the same of the version before, for `rollback`
    BINDIR/channelindex              a link to the program
    BINDIR/../share/                 links to the manual pages and to what bash and zsh complete by
    UNITDIR/, LIBDIR/{sysusers,tmpfiles}.d/
    SYSCONFDIR/channelindex/         example.toml; nothing of the operator's is ever touched

Everything goes below DESTDIR, which no installed file mentions, so that packages can be built from it. A version is
built beside the one that runs and takes its place when it is complete. What was written elsewhere is listed in
PREFIX/installed, and only that is removed. Runs on the Python that is to run the program, and needs nothing else.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
UNIT_PREFIX = "/opt/channelindex"
"""Where the units in this folder look for the program."""
_PLAIN = re.compile(r"/[\w./+-]*")
"""What a folder may be called: a unit and the first line of a script are read word by word."""
_HIDDEN = (Path("/home"), Path("/root"), Path("/run/user"))
"""Folders that the unit's ProtectHome hides from the service."""
_RUNNING = ("channelindex@*.service", "channelindex-serve@*.service")
_WRITE_MANUAL = """
import pathlib, sys
from channelindex.__main__ import add_parts
add_parts()
from workers.cli import manual
manual.main(pathlib.Path(sys.argv[1]))
"""


_COMPLETIONS = {
    "bash": "bash-completion/completions/channelindex",
    "zsh": "zsh/site-functions/_channelindex",
}
"""Where each shell looks for its script, below a `share`."""


class Refused(Exception):
    """It cannot be done; the message says why and what to do."""


@dataclass(frozen=True)
class Layout:
    """Where things go on the machine that runs them, and *destdir*, below which they are put now."""

    prefix: Path
    bindir: Path
    unitdir: Path
    libdir: Path
    sysconfdir: Path
    destdir: str

    def staged(self, path: Path) -> Path:
        """Where *path* is now."""
        return Path(f"{self.destdir}{path}")

    @property
    def sharedir(self) -> Path:
        """Where `man` and the shells look for what belongs to a program in `bindir`."""
        return self.bindir.parent / "share"

    @property
    def home(self) -> Path:
        """The prefix, as it is staged."""
        return self.staged(self.prefix)

    @property
    def old_home(self) -> Path:
        """The version before."""
        return self.home.with_name(f"{self.prefix.name}.old")

    @property
    def manifest(self) -> Path:
        """The list of what was written outside of the prefix."""
        return self.home / "installed"


def main(arguments: list[str]) -> int:
    """Install or remove, as *arguments* say; the exit code."""
    parser = argparse.ArgumentParser(description="Install the channel index for systemd, or remove it.")
    parser.add_argument("action", choices=("install", "rollback", "uninstall"))
    parser.add_argument("--prefix", type=Path, default=Path(UNIT_PREFIX))
    parser.add_argument("--bindir", type=Path, default=Path("/usr/local/bin"))
    parser.add_argument("--unitdir", type=Path, default=Path("/usr/local/lib/systemd/system"))
    parser.add_argument("--libdir", type=Path, default=Path("/usr/local/lib"))
    parser.add_argument("--sysconfdir", type=Path, default=Path("/etc"))
    parser.add_argument("--destdir", default="")
    parser.add_argument(
        "--from", dest="source", default=str(PROJECT), help="what pip installs: this project, or a wheel"
    )
    parser.add_argument("--extras", default="node", help="what the service needs beside the library")
    given = parser.parse_args(arguments)
    layout = Layout(
        given.prefix, given.bindir, given.unitdir, given.libdir, given.sysconfdir, given.destdir.rstrip("/")
    )
    try:
        _check(layout)
        match given.action:
            case "install":
                install(layout, _requirement(given.source, given.extras))
            case "rollback":
                rollback(layout)
            case _:
                uninstall(layout)
    except (Refused, OSError, subprocess.CalledProcessError) as error:
        print(f"{given.action}: {_described(error)}", file=sys.stderr)
        return 1
    return 0


def _check(layout: Layout) -> None:
    for path in (layout.prefix, layout.bindir, layout.unitdir, layout.libdir, layout.sysconfdir):
        if not _PLAIN.fullmatch(str(path)):
            raise Refused(f"{path!s:.200}: folders must be absolute, and of letters, digits, and . _ + - alone")


def _described(error: Exception) -> str:
    match error:
        case subprocess.CalledProcessError():
            return "the step above failed; nothing was installed"
        case OSError(filename=name, strerror=why) if name:
            return f"{name}: {why}"
    return str(error)


def install(layout: Layout, requirement: str) -> None:
    """Install what *requirement* tells pip, or put another version in the place of the one that is there."""
    home = layout.home
    if home.exists() and not layout.manifest.exists():
        raise Refused(f"{home} is there and not ours: choose another PREFIX")
    new_home = home.with_name(f"{layout.prefix.name}.new")
    try:
        _build(new_home, layout.prefix, requirement)
        written = _write_outside(layout)
        (new_home / "installed").write_text("".join(f"{path}\n" for path in written))
    except BaseException:
        shutil.rmtree(new_home, ignore_errors=True)
        raise
    is_upgrade = home.exists()
    if is_upgrade:
        shutil.rmtree(layout.old_home, ignore_errors=True)
        home.rename(layout.old_home)
    new_home.rename(home)
    print(f"installed in {home}")
    if not layout.destdir:
        print(_next_steps(layout, is_upgrade=is_upgrade))
    _warn_of_hidden_python()


def _next_steps(layout: Layout, *, is_upgrade: bool) -> str:
    if is_upgrade:
        return "next: systemctl daemon-reload, then restart node by node; `make rollback` brings the old version back"
    folder = layout.sysconfdir / "channelindex"
    return (
        "next: systemd-sysusers && systemd-tmpfiles --create && systemctl daemon-reload\n"
        f"then: cp {folder}/example.toml {folder}/NAME.toml, edit it, write {folder}/NAME.password, and\n"
        "      systemctl enable --now channelindex@NAME"
    )


def _warn_of_hidden_python() -> None:
    base = Path(sys.base_prefix).resolve()
    if any(base.is_relative_to(folder) for folder in _HIDDEN):
        print(
            f"install: the service will not find Python: {base} is hidden from it (ProtectHome of the unit).\n"
            "         Install with another one, as in `make install PY=/usr/bin/python3`",
            file=sys.stderr,
        )


def rollback(layout: Layout) -> None:
    """Let the version before and the present one change places. Units and configurations stay as they are."""
    home, old, aside = layout.home, layout.old_home, layout.home.with_name(f"{layout.prefix.name}.new")
    if not (old / "installed").exists():
        raise Refused(f"there is no version before in {old}")
    home.rename(aside)
    old.rename(home)
    aside.rename(old)
    print(f"the version before is back in {home}; restart the nodes to run it")


def uninstall(layout: Layout) -> None:
    """Remove what `install` wrote. Configurations stay, and so does the user."""
    if not layout.manifest.exists():
        raise Refused(f"nothing of ours is in {layout.home}")
    if not layout.destdir and _nodes_run():
        raise Refused(
            "nodes run: first `systemctl disable --now channelindex@NAME channelindex-serve@NAME` for each of them"
        )
    for line in layout.manifest.read_text().splitlines():
        layout.staged(Path(line)).unlink(missing_ok=True)
    shutil.rmtree(layout.home)
    shutil.rmtree(layout.old_home, ignore_errors=True)
    folder = layout.staged(layout.sysconfdir / "channelindex")
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    print(f"removed {layout.home}")


def _nodes_run() -> bool:
    """Whether systemd has a node that runs; nobody knows where there is no systemd."""
    systemctl = shutil.which("systemctl")
    if systemctl is None:
        return False
    return subprocess.run([systemctl, "is-active", "--quiet", *_RUNNING], check=False).returncode == 0


def _requirement(source: str, extras: str) -> str:
    """Return what pip is told to install: *source*, a folder, a wheel or a name with a version, with *extras*."""
    is_path = source in {".", ".."} or "/" in source or source.endswith((".whl", ".tar.gz"))
    if is_path:  # what a name names may be a folder here, too
        return f"{Path(source).resolve()}[{extras}]"
    return re.sub(r"^[\w.-]+", rf"\g<0>[{extras}]", source)


def _build(new_home: Path, prefix: Path, requirement: str) -> None:
    """Make the environment in *new_home* as it is to be in *prefix*."""
    venv.EnvBuilder(with_pip=True, clear=True, symlinks=True).create(new_home)
    python = str(new_home / "bin" / "python")
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "install", "--no-compile", requirement], check=True)
    share = new_home / "share"
    subprocess.run([python, "-I", "-c", _WRITE_MANUAL, str(share / "man")], check=True)
    for shell, name in _COMPLETIONS.items():
        script = share / name
        script.parent.mkdir(parents=True)
        with script.open("wb") as file:
            subprocess.run([python, "-I", "-m", "channelindex", "completion", shell], check=True, stdout=file)
    shutil.copytree(PROJECT / "docs", share / "doc" / "channelindex")
    for path in (new_home / "bin").iterdir():
        if path.is_file() and not path.is_symlink():
            path.write_bytes(path.read_bytes().replace(bytes(new_home), bytes(prefix)))
    compiler = [python, "-m", "compileall", "-q", "-j0", "-s", str(new_home), "-p", str(prefix)]
    subprocess.run([*compiler, *map(str, (new_home / "lib").glob("python3*"))], check=True)


def _link(link: Path, target: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(target)


def _write_outside(layout: Layout) -> list[Path]:
    """Write what belongs elsewhere than into the prefix; the list of it."""
    link = layout.bindir / "channelindex"
    _link(layout.staged(link), layout.prefix / "bin" / "channelindex")
    example = layout.sysconfdir / "channelindex" / "example.toml"
    _put(layout, "example.toml", example, mode=0o640)
    shared = [Path("man/man1/channelindex.1"), Path("man/man5/channelindex.toml.5"), *map(Path, _COMPLETIONS.values())]
    for path in shared:
        _link(layout.staged(layout.sharedir / path), layout.prefix / "share" / path)
    return [*_units(layout), link, *(layout.sharedir / path for path in shared), example]


def _units(layout: Layout) -> list[Path]:
    targets = {
        "channelindex@.service": layout.unitdir / "channelindex@.service",
        "channelindex-serve@.service": layout.unitdir / "channelindex-serve@.service",
        "channelindex.target": layout.unitdir / "channelindex.target",
        "channelindex.sysusers": layout.libdir / "sysusers.d" / "channelindex.conf",
        "channelindex.tmpfiles": layout.libdir / "tmpfiles.d" / "channelindex.conf",
    }
    for name, target in targets.items():
        _put(layout, name, target, mode=0o644)
    return list(targets.values())


def _put(layout: Layout, name: str, target: Path, mode: int) -> None:
    """Write the file *name* of this folder to *target*, with the folders that it mentions as they are here."""
    text = (HERE / name).read_text(encoding="utf-8").replace(UNIT_PREFIX, str(layout.prefix))
    staged = layout.staged(target)
    staged.parent.mkdir(parents=True, exist_ok=True)
    staged.write_text(text.replace("/etc/channelindex", f"{layout.sysconfdir}/channelindex"), encoding="utf-8")
    staged.chmod(mode)


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main(sys.argv[1:]))
