"""Installs the program for systemd, goes back to the version before, or removes it: `make install` and its like.

    PREFIX/                          a virtual environment of its own, with the program and what it needs
    PREFIX/share/                    documents, alert rules, dashboard, manual pages
    PREFIX.old/                      the same of the version before, for `rollback`
    BINDIR/channelindex              a link to the program
    UNITDIR/, LIBDIR/{sysusers,tmpfiles}.d/
    SYSCONFDIR/channelindex/         example.toml; nothing of the operator's is ever touched

Everything goes below DESTDIR, which no installed file mentions, so that packages can be built from it. A version is
built beside the one that runs and takes its place when it is complete. What was written elsewhere is listed in
PREFIX/installed, and only that is removed. Runs on the Python that is to run the program, and needs nothing else.
"""

import argparse
import os
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
    given = parser.parse_args(arguments)
    layout = Layout(
        given.prefix, given.bindir, given.unitdir, given.libdir, given.sysconfdir, given.destdir.rstrip("/")
    )
    for path in (layout.prefix, layout.bindir, layout.unitdir, layout.libdir, layout.sysconfdir):
        if not path.is_absolute():
            parser.error(f"{path}: folders must be absolute paths")
    match given.action:
        case "install":
            return install(layout, given.source)
        case "rollback":
            return rollback(layout)
    return uninstall(layout)


def install(layout: Layout, source: str) -> int:
    """Install, or put another version in the place of the one that is there."""
    home = layout.home
    if home.exists() and not layout.manifest.exists():
        print(f"install: {home} is there and not ours: choose another PREFIX", file=sys.stderr)
        return 1
    new_home = home.with_name(f"{layout.prefix.name}.new")
    _build(new_home, layout.prefix, source)
    written = _units(layout)
    link = layout.bindir / "channelindex"
    _link(layout.staged(link), layout.prefix / "bin" / "channelindex")
    example = layout.sysconfdir / "channelindex" / "example.toml"
    _put(HERE / "example.toml", layout.staged(example), mode=0o640)
    (new_home / "installed").write_text("".join(f"{path}\n" for path in (*written, link, example)))
    if home.exists():
        shutil.rmtree(layout.old_home, ignore_errors=True)
        home.rename(layout.old_home)
    new_home.rename(home)
    print(f"installed in {home}")
    if not layout.destdir:
        print(
            "next: systemd-sysusers && systemd-tmpfiles --create && systemctl daemon-reload\n"
            f"then: write {layout.sysconfdir}/channelindex/NAME.toml and NAME.password, and\n"
            "      systemctl enable --now channelindex@NAME"
        )
    return 0


def rollback(layout: Layout) -> int:
    """Let the version before and the present one change places. Units and configurations stay as they are."""
    home, old, aside = layout.home, layout.old_home, layout.home.with_name(f"{layout.prefix.name}.new")
    if not (old / "installed").exists():
        print(f"rollback: there is no version before in {old}", file=sys.stderr)
        return 1
    home.rename(aside)
    old.rename(home)
    aside.rename(old)
    print(f"the version before is back in {home}; restart the nodes to run it")
    return 0


def uninstall(layout: Layout) -> int:
    """Remove what `install` wrote. Configurations stay, and so does the user."""
    if not layout.manifest.exists():
        print(f"uninstall: nothing of ours is in {layout.home}", file=sys.stderr)
        return 1
    for line in layout.manifest.read_text().splitlines():
        layout.staged(Path(line)).unlink(missing_ok=True)
    shutil.rmtree(layout.home)
    shutil.rmtree(layout.old_home, ignore_errors=True)
    folder = layout.staged(layout.sysconfdir / "channelindex")
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    print(f"removed {layout.home}")
    return 0


def _build(new_home: Path, prefix: Path, source: str) -> None:
    """Make the environment in *new_home* as it is to be in *prefix*."""
    venv.EnvBuilder(with_pip=True, clear=True, symlinks=True).create(new_home)
    python = str(new_home / "bin" / "python")
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "install", "--no-compile", source], check=True)
    share = new_home / "share"
    subprocess.run([python, "-I", "-m", "workers.cli.manual", str(share / "man")], check=True)
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


def _units(layout: Layout) -> list[Path]:
    targets = {
        "channelindex@.service": layout.unitdir / "channelindex@.service",
        "channelindex.target": layout.unitdir / "channelindex.target",
        "channelindex.sysusers": layout.libdir / "sysusers.d" / "channelindex.conf",
        "channelindex.tmpfiles": layout.libdir / "tmpfiles.d" / "channelindex.conf",
    }
    for name, target in targets.items():
        text = (HERE / name).read_text(encoding="utf-8").replace(UNIT_PREFIX, str(layout.prefix))
        text = text.replace("/etc/channelindex", f"{layout.sysconfdir}/channelindex")
        staged = layout.staged(target)
        staged.parent.mkdir(parents=True, exist_ok=True)
        staged.write_text(text, encoding="utf-8")
        staged.chmod(0o644)
    return list(targets.values())


def _put(source: Path, target: Path, mode: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(mode)


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main(sys.argv[1:]))
