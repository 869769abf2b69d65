"""Loads the configuration and reports everything that is wrong with it at once.

A later source wins over an earlier one: default, TOML file, environment (`CHANNELINDEX_SECTION_KEY`), `--set
section.key=value`. Nothing else in the project reads that file or these variables.
"""

import difflib
import re
import socket
import tomllib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

from channelindex.config_text import format_value, printable
from channelindex.errors import ConfigInvalid
from channelindex.redis_url import SCHEMES as REDIS_SCHEMES
from channelindex.settings import (
    ENVIRONMENT_PREFIX,
    MEMORY_URL,
    SECTIONS,
    SETTINGS,
    Config,
    Setting,
    Value,
)

__all__ = [
    "REQUIRED_TO_READ",
    "REQUIRED_TO_RUN",
    "REQUIRED_TO_SEE_NODES",
    "REQUIRED_TO_VERIFY",
    "Config",
    "ConfigProblems",
    "load_config",
]

REQUIRED_TO_READ = ("index.store",)

TRUSTED = "ssl_ca_certs"
"""Option of a Redis' URL: certificates of its authorities, as `redis-py` names them."""
_UNREADABLE = "the configuration file"
MAX_FILE_BYTES = 1 << 20
"""A configuration or password file that is larger is something else: a device without an end, a core dump."""
MAX_PROBLEMS = 100
"""Most problems that are reported: the file may be no configuration at all."""
REQUIRED_TO_VERIFY = ("source.url", "index.store")
REQUIRED_TO_SEE_NODES = ("index.store", "coordination.redis")
REQUIRED_TO_RUN = ("source.url", "index.store", "coordination.redis")
_SERVICE_VARIABLE = re.compile(
    r"\w+?(_SERVICE_HOST|_SERVICE_PORT(_\w+)?|_PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)
"""The variables that Kubernetes puts into every pod for each Service of the namespace, one called
`channelindex` or `channelindex-metrics` too (kubernetes.io, "Environment variables" of Services)."""
_NEAR = 0.75
"""Similarity from which a variable counts as a misspelt key (`difflib`, 0 to 1)."""
_CREDENTIALS_DIRECTORY = "CREDENTIALS_DIRECTORY"
"""systemd's variable: the folder of what a unit gives with LoadCredential=source.password:/path, or index.password."""


class ConfigProblems(ConfigInvalid):
    """Everything that is wrong with a configuration; `problems` has one line for each."""

    def __init__(self, problems: Collection[str]) -> None:
        assert problems, "something is wrong"
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


class _Given(NamedTuple):
    """One value as given. *textual*: from a source in which everything is text, so that numbers must be parsed."""

    key: str
    value: object
    origin: str
    textual: bool


def load_config(
    path: Path | None,
    environ: Mapping[str, str],
    overrides: Mapping[str, Value],
    required: Collection[str] = REQUIRED_TO_RUN,
    *,
    read_passwords: bool = True,
) -> Config:
    """The configuration from the file at *path* (None: no file), *environ* and *overrides* (`section.key` -> value).

    Keys in *required* must be set; a command that only reads the index needs no source. Without *read_passwords*, files
    of passwords stay closed, for a caller that may not read them and uses none.

    Raises:
        ConfigProblems: with every problem found.
    """
    problems: list[str] = []
    values: dict[str, Value] = {}
    origins: dict[str, str] = {}
    warnings: list[str] = []
    from_environment = _from_environment(environ, warnings)
    for given in (*_from_file(path, problems), *from_environment, *_from_overrides(overrides)):
        if len(problems) >= MAX_PROBLEMS:
            problems.append("there are more problems")
            break
        value = _checked(given, problems)
        if value is not None:
            values[given.key] = value
            origins[given.key] = given.origin
    _find_credential(values, origins, environ)
    _derive(values, origins, problems)
    if read_passwords:
        _read_passwords(values, origins, problems)
    refused = {problem.partition(" ")[0] for problem in problems}
    unread = any(problem.startswith(_UNREADABLE) for problem in problems)
    if not unread:  # what is missing may be in the file
        problems += [
            _missing(key, values) for key in required if key not in values and _is_reportable(key, refused, values)
        ]
    if problems:
        raise ConfigProblems(problems)
    return _build(values, origins, warnings)


def _is_reportable(key: str, refused: Collection[str], values: Mapping[str, Value]) -> bool:
    """True if *key* is needed and no other problem reports already that it is missing."""
    if key == "coordination.redis" and values.get("index.store", MEMORY_URL) == MEMORY_URL:
        return False  # the one store that needs no leases
    return key not in refused


def _missing(key: str, values: Mapping[str, Value]) -> str:
    store = values.get("index.store", "")
    why = f" (leases need a Redis, and index.store is {store})" if key == "coordination.redis" else ""
    return f"{key} is not set{why}: give it in the file, as {SETTINGS[key].variable} or with --set {key}=…"


def check_reload(present: Config, reloaded: Config) -> None:
    """Refuse a reload that changes what a running node cannot change.

    Raises:
        ConfigInvalid: naming what takes a restart.
    """
    fixed = {
        "node": (present.node, reloaded.node),
        "index": (present.index, reloaded.index),
        "coordination": (present.coordination, reloaded.coordination),
        "source.url": (present.source.url, reloaded.source.url),
    }
    changed = [name for name, (before, after) in fixed.items() if before != after]
    if changed:
        raise ConfigInvalid(f"{', '.join(changed)} cannot change while the node runs: restart it")


def _from_file(path: Path | None, problems: list[str]) -> Iterator[_Given]:
    if path is None:
        return
    try:
        document = tomllib.loads(_text_of(path))
    except (OSError, ValueError, RecursionError) as error:  # of TOML, UTF-8, or digits beyond Python's limit
        problems.append(f"{_UNREADABLE} {printable(str(path))} cannot be read: {_reason(error)}")
        return
    for section, content in document.items():
        if isinstance(content, dict):
            for name, value in content.items():
                yield _Given(f"{section}.{name}", value, str(path), textual=False)
        else:
            yield _Given(section, content, str(path), textual=False)


def _text_of(path: Path) -> str:
    """Read the file at *path*. Raises ValueError where it is too large, or not text."""
    with path.open("rb") as file:
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"larger than {MAX_FILE_BYTES} bytes")
    return content.decode("utf-8").replace("\r\n", "\n")


def _reason(error: Exception) -> object:
    if isinstance(error, OSError):
        return error.strerror
    return "nested too deeply" if isinstance(error, RecursionError) else error


def _from_environment(environ: Mapping[str, str], warnings: list[str]) -> Iterator[_Given]:
    """Yield what the environment sets. A variable that is no key of ours and resembles none may be another program's:
    it goes to *warnings*, and one that Kubernetes makes for a Service is passed over.
    """
    key_by_variable = {setting.variable: key for key, setting in SETTINGS.items()}
    for variable, value in environ.items():
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        key = key_by_variable.get(variable)
        if key is None and _SERVICE_VARIABLE.fullmatch(variable):
            continue
        if key is None and not _may_be_misspelt(variable, key_by_variable):
            warnings.append(f"the environment variable {printable(variable)} sets no key and is ignored")
            continue
        guess = variable.removeprefix(ENVIRONMENT_PREFIX).lower().replace("_", ".", 1)
        yield _Given(key or guess, value, f"environment {variable}", textual=True)


def _may_be_misspelt(variable: str, variables: Collection[str]) -> bool:
    """Tell whether *variable* names a section of ours, or resembles one of *variables*."""
    name = variable.removeprefix(ENVIRONMENT_PREFIX)
    names = [other.removeprefix(ENVIRONMENT_PREFIX) for other in variables]
    return name.partition("_")[0].lower() in SECTIONS or bool(difflib.get_close_matches(name, names, 1, _NEAR))


def _from_overrides(overrides: Mapping[str, Value]) -> Iterator[_Given]:
    for key, value in overrides.items():
        yield _Given(key, value, "the command line", textual=isinstance(value, str))


def _checked(given: _Given, problems: list[str]) -> Value | None:
    """The value, of the right type and within its bounds; None if it is not, with the problem noted."""
    setting = SETTINGS.get(given.key)
    if setting is None:
        problems.append(_unknown(given))
        return None
    wrong: str | None
    try:
        value = _typed(setting, given)
        wrong = setting.wrong(value)
    except (ValueError, OverflowError) as error:  # a whole number can be too large for one with a fraction
        value, wrong = "", str(error)
    if wrong:
        problems.append(f"{given.key} = {format_value(setting, given.value)} (set in {given.origin}): {wrong}")
        return None
    return value


def _unknown(given: _Given) -> str:
    """The problem of an unknown key. Its value is not shown: it may be a password under a misspelt key."""
    if given.key in SECTIONS:
        return f"{given.key} (set in {given.origin}): must be a table, [{given.key}]"
    key = printable(given.key)
    near = difflib.get_close_matches(key, SETTINGS, n=1, cutoff=0.5)
    fix = f"did you mean {near[0]}?" if near else "`channelindex config docs` lists all keys"
    return f"{key} (set in {printable(given.origin)}): unknown key; {fix}"


def _typed(setting: Setting, given: _Given) -> Value:
    """*given* as the type of the setting's default. Raises ValueError with what it must be."""
    value = given.value
    if given.textual:
        return _read(type(setting.default), str(value))
    match setting.default, value:
        case bool(), bool():
            return value
        case str(), str():
            return value
        case (int(), int()) if not isinstance(value, bool) and not isinstance(setting.default, bool):
            return value
        case (float(), int() | float()) if not isinstance(value, bool):
            return float(value)
    raise ValueError(_MUST_BE[type(setting.default)])


_MUST_BE: Mapping[type, str] = {
    str: "must be text",
    int: "must be a whole number",
    float: "must be a number",
    bool: "must be true or false",
}


def _read(kind: type[Value], text: str) -> Value:
    """*text* from the environment or a flag as a *kind*."""
    if kind is bool:
        if text.lower() not in {"true", "false"}:
            raise ValueError(_MUST_BE[bool])
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError:
        raise ValueError(_MUST_BE[kind]) from None


def _find_credential(values: dict[str, Value], origins: dict[str, str], environ: Mapping[str, str]) -> None:
    """Use systemd's credential file, if there is one, for each password that is not set."""
    for key in ("source.password", "index.password"):
        path = Path(environ.get(_CREDENTIALS_DIRECTORY, ""), key)
        if not {key, f"{key}_file"} & values.keys() and path.is_absolute() and _exists(path):
            values[f"{key}_file"] = str(path)
            origins[f"{key}_file"] = f"environment {_CREDENTIALS_DIRECTORY}"


def _exists(path: Path) -> bool:
    """True if *path* exists; false where we may not look."""
    try:
        return path.exists()
    except PermissionError:
        return False


def _derive(values: dict[str, Value], origins: dict[str, str], problems: list[str]) -> None:
    """Fill in what follows from other keys, and check what no key can be checked for alone."""
    if "source.tls_key_file" in values and "source.tls_cert_file" not in values:
        problems.append("source.tls_key_file is set without source.tls_cert_file, whose key it would be")
    if "node.name" not in values:
        values["node.name"] = socket.gethostname()
    _trust("index.store", "index.ca_file", values, problems)
    _trust("coordination.redis", "coordination.ca_file", values, problems)
    store = str(values.get("index.store", ""))
    if "coordination.redis" not in values and store.partition(":")[0] in REDIS_SCHEMES:
        values["coordination.redis"] = store
        origins["coordination.redis"] = "index.store"


def _trust(url_key: str, ca_key: str, values: dict[str, Value], problems: list[str]) -> None:
    """Put the authorities of *ca_key* into the URL of a Redis, from where all connections take them."""
    url, path = str(values.get(url_key, "")), str(values.get(ca_key, ""))
    if not path or not url.startswith((*REDIS_SCHEMES,)):
        return
    if not url.startswith("rediss"):
        problems.append(f"{ca_key} is set, but {url_key} is without TLS: it must begin with rediss")
    elif f"{TRUSTED}=" in url:
        problems.append(f"{ca_key} is set, and {url_key} has {TRUSTED}, too; remove one of them")
    elif not _exists(Path(path)):
        problems.append(f'{ca_key} = "{printable(path)}": there is no such file, or it may not be read')
    else:
        values[url_key] = f"{url}{'&' if '?' in url else '?'}{urlencode({TRUSTED: path})}"


def _read_passwords(values: dict[str, Value], origins: dict[str, str], problems: list[str]) -> None:
    for section in ("source", "index"):
        if f"{section}.password_file" in values:
            _read_password(section, values, origins, problems)


def _read_password(section: str, values: dict[str, Value], origins: dict[str, str], problems: list[str]) -> None:
    key, file_key = f"{section}.password", f"{section}.password_file"
    path = str(values[file_key])
    where = f'{file_key} = "{path}" (set in {origins[file_key]})'
    if key in values:
        problems.append(f"{where}: {key} is set too ({origins[key]}); remove one of them")
        return
    try:
        values[key] = _text_of(Path(path)).partition("\n")[0].rstrip("\r")
    except (OSError, ValueError) as error:
        problems.append(f"{where}: cannot be read: {_reason(error)}")
        return
    origins[key] = f"{file_key} {path}"


def _build(values: Mapping[str, Value], origins: Mapping[str, str], warnings: Collection[str]) -> Config:
    sections: dict[str, Any] = {}
    for section, kind in SECTIONS.items():
        own = {key.partition(".")[2]: value for key, value in values.items() if key.startswith(section + ".")}
        sections[section] = kind(**own)
    return Config(**sections, origins=dict(origins), warnings=tuple(warnings))
