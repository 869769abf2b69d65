"""Formats settings for people: on one line, as TOML writes them, without passwords."""

from collections.abc import Iterator, Mapping

from channelindex.settings import CONTROL_CHARACTERS, DEFAULT_ORIGIN, SETTINGS, Config, Setting, Value
from channelindex.urls import mask_value

_SHOWN_CHARACTERS = 500
"""Longest part of a wrong value that is printed: somebody may have put a whole file there."""


def printable(text: str) -> str:
    """*text* for a message: shortened, on one line, control characters escaped."""
    shown = text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}… ({len(text)} characters)"
    return shown if not CONTROL_CHARACTERS.search(shown) else shown.encode("unicode_escape").decode()


def format_value(setting: Setting, value: object) -> str:
    """*value* as TOML writes it, without passwords."""
    if setting.secret:
        return '"***"' if value else '""'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + printable(mask_value(value).replace("\\", "\\\\").replace('"', '\\"')) + '"'
    try:
        return printable(str(value))
    except (ValueError, RecursionError):
        return "too large to print"


def config_rows(config: Config) -> Iterator[tuple[str, str, str]]:
    """Each key of *config* with its formatted value and its origin."""
    for key, setting in SETTINGS.items():
        yield key, format_value(setting, _value(config, key)), config.origins.get(key, DEFAULT_ORIGIN)


def config_values(config: Config) -> Mapping[str, Mapping[str, Value]]:
    """Each key of *config* with its `value`, without passwords, and its `origin`, for programs."""
    shown = {}
    for key, setting in SETTINGS.items():
        value = _value(config, key)
        if isinstance(value, str):
            value = ("***" if value else "") if setting.secret else mask_value(value)
        shown[key] = {"value": value, "origin": config.origins.get(key, DEFAULT_ORIGIN)}
    return shown


def _value(config: Config, key: str) -> Value:
    section, _, name = key.partition(".")
    value: Value = getattr(getattr(config, section), name)
    return value
