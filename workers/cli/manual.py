"""Manual pages made from the parsers and the model of the configuration: channelindex(1) and channelindex.toml(5)."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from channelindex import __version__, exits
from channelindex.config_text import format_value
from channelindex.settings import SECTIONS, SETTINGS, Setting
from workers import cli
from workers.cli.reference import arguments


def commands() -> str:
    """channelindex(1), of the commands that this installation can run."""
    installed = [name for name in cli.COMMANDS if cli.is_installed(name)]
    _, parser_by_command = cli.build_parser(installed)
    lines = [_head("CHANNELINDEX", 1, "channelindex", "the channel index of a Couchbase bucket")]
    lines += [".SH SYNOPSIS", r"\fBchannelindex\fR \fICOMMAND\fR \&...", ".SH COMMANDS"]
    for name in installed:
        parser = parser_by_command[name]
        lines += [f".SS {name}", _text(parser.description or ""), *_arguments(parser)]
        lines += [".PP", ".nf", _text(parser.epilog or ""), ".fi"]
    lines.append(".SH EXIT STATUS")
    for code, meaning in exits.MEANING_BY_CODE.items():
        lines += [".TP", str(code), _text(meaning)]
    return "\n".join([*lines, ".SH SEE ALSO", r"\fBchannelindex.toml\fR(5)", ""])


def configuration() -> str:
    """channelindex.toml(5)."""
    lines = [_head("CHANNELINDEX.TOML", 5, "channelindex.toml", "configuration of a node of the channel index")]
    lines += [
        ".SH DESCRIPTION",
        "A TOML file. Each key can also be set by the environment variable that is named with it.",
    ]
    for section, kind in SECTIONS.items():
        lines += [f".SH [{section}]", _text((kind.__doc__ or "").strip())]
        for key, setting in SETTINGS.items():
            if key.startswith(f"{section}."):
                lines += [".TP", rf"\fB{_text(key.partition('.')[2])}\fR", _text(_about(setting))]
    return "\n".join([*lines, ".SH SEE ALSO", r"\fBchannelindex\fR(1)", ""])


def _about(setting: Setting) -> str:
    default = setting.default_text or ("" if setting.default == "" else format_value(setting, setting.default))
    allowed = f"{setting.bounds} {setting.unit}".strip()
    notes = [f"Default: {default}."] if default else []
    notes += [f"Allowed: {allowed}."] if allowed else []
    return " ".join([setting.doc, *notes, f"({setting.variable})"])


def _arguments(parser: argparse.ArgumentParser) -> Iterator[str]:
    for names, meaning in arguments(parser):
        yield from (".TP", rf"\fB{_text(names)}\fR", _text(meaning))


def _head(title: str, section: int, name: str, purpose: str) -> str:
    return f'.TH "{title}" "{section}" "" "channelindex {__version__}"\n.SH NAME\n{_text(name)} \\- {_text(purpose)}'


def _text(text: str) -> str:
    """*text* as roff prints it: nothing in it is a command."""
    escaped = text.replace("\\", r"\e").replace("-", r"\-")
    return "\n".join(rf"\&{line}" if line.startswith((".", "'")) else line for line in escaped.splitlines())


def main(folder: Path) -> None:
    """Write both pages below *folder*, where `man` looks for them."""
    for name, section, text in (("channelindex", 1, commands()), ("channelindex.toml", 5, configuration())):
        target = folder / f"man{section}"
        target.mkdir(parents=True, exist_ok=True)
        (target / f"{name}.{section}").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
