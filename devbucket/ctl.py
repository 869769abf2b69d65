"""The operations of `Controls` by name: what they take, read from words of a command line or from JSON. No I/O."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from channelindex.errors import ConfigInvalid
from devbucket.controls import Controls

_SWITCH = {"on": True, "off": False}


def _listed() -> dict[str, inspect.Signature]:
    members = inspect.getmembers(Controls, inspect.isfunction)
    return {
        name: inspect.signature(function)
        for name, function in members
        if not name.startswith("_") and function is not Controls.bulk_load  # its documents are no words
    }


OPERATIONS: Mapping[str, inspect.Signature] = _listed()
"""Every operation that an operator may ask for."""


def usage(name: str) -> str:
    """Return how an operation is written: its arguments, those in brackets may be left out."""
    parts = [name]
    for parameter in _parameters(name):
        word = parameter.name.upper()
        parts.append(word if parameter.default is parameter.empty else f"[{parameter.name}={_text(parameter.default)}]")
    return " ".join(parts)


def summary(name: str) -> str:
    """Return what an operation does, in one line."""
    return (inspect.getdoc(getattr(Controls, name)) or "").partition("\n")[0]


def arguments_of(name: str, words: Sequence[str]) -> dict[str, Any]:
    """Return the arguments that *words* give: in the operation's order, or as name=value.

    Raises:
        ConfigInvalid: they do not fit.
    """
    parameters = _parameters(name)
    unnamed = iter(parameters)
    given: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if equals:
            given[key] = value
        elif (parameter := next(unnamed, None)) is None:
            raise ConfigInvalid(f"{word!r} is too much: {usage(name)}")
        else:
            given[parameter.name] = word
    known = {parameter.name: parameter for parameter in parameters}
    if unknown := given.keys() - known.keys():
        raise ConfigInvalid(f"there is no {', '.join(sorted(unknown))}: {usage(name)}")
    return {key: _parsed(known[key].annotation, key, value) for key, value in given.items()}


def carry_out(controls: Controls, name: str, arguments: Mapping[str, Any]) -> Any:
    """Call an operation; what it returns may have to be awaited.

    Raises:
        ConfigInvalid: there is no such operation, or it takes other arguments.
    """
    if name not in OPERATIONS:
        raise ConfigInvalid(f"there is no operation {name!r}")
    operation: Callable[..., Any] = getattr(controls, name)
    try:
        inspect.signature(operation).bind(**arguments)
    except TypeError as error:
        raise ConfigInvalid(f"{error}: {usage(name)}") from error
    for parameter in _parameters(name):
        if parameter.name in arguments and not _fits(parameter.annotation, arguments[parameter.name]):
            raise ConfigInvalid(f"{parameter.name}={arguments[parameter.name]!r} is not {_kind(parameter.annotation)}")
    return operation(**arguments)


def _parameters(name: str) -> list[inspect.Parameter]:
    return list(OPERATIONS[name].parameters.values())[1:]


def _text(default: object) -> str:
    """Return a default as words spell it."""
    if isinstance(default, bool):
        return "on" if default else "off"
    return "all" if default in ("", None) else str(default)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _parsed(annotation: Any, key: str, text: str) -> Any:
    if annotation is str:
        return text
    if annotation is bool and text in _SWITCH:
        return _SWITCH[text]
    if annotation == list[int] and re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text):
        return [vb for part in text.split(",") for vb in _range(part)]
    if annotation in (int, int | None) and re.fullmatch(r"-?\d+", text):
        return int(text)
    raise ConfigInvalid(f"{key}={text!r} is not {_kind(annotation)}")


def _range(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def _fits(annotation: Any, value: object) -> bool:
    if annotation == list[int]:
        return isinstance(value, list) and all(map(_is_int, value))
    if annotation == int | None:
        return value is None or _is_int(value)
    return _is_int(value) if annotation is int else isinstance(value, annotation)


def _kind(annotation: Any) -> str:
    if annotation == list[int]:
        return "a list of numbers such as 0-7,12"
    return {bool: "on or off", str: "a text"}.get(annotation, "a whole number")
