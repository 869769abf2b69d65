"""Who may read what: a file of tokens, of which it holds the hashes alone.

    # name      SHA-256 of the token       what it may read           requests per second
    billing     sha256:9f86d081884c7d65…   channels=orders,invoices   rate=50
    gateway     sha256:60303ae22b998861…   channels=*  proxy

A token is 256 random bits, so one round of SHA-256 is enough. A grant is a channel's exact name, or ends in one `*`
and stands for all that begin so; the channel `*` itself, of all documents, needs the grant `*`. Commas, spaces and `%`
within a name are percent-encoded. `proxy` is for a program that checks its users itself: each of its requests names the
channels of that user in the header Channelindex-Channels.
"""

import base64
import binascii
import hashlib
import hmac
import os
import re
import secrets
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote

from channelindex.errors import ConfigInvalid
from channelindex.model import STAR_CHANNEL

TOKEN_PREFIX = "cix_"  # noqa: S105 by which a token that was committed somewhere is found
TOKEN_BYTES = 32
MAX_FILE_BYTES = 16 << 20
MAX_TOKEN_CHARACTERS = 256
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Access(NamedTuple):
    """The rights of one token. `patterns`: the grants that end in `*`, without it."""

    name: str
    digest: str
    exact: frozenset[str]
    patterns: tuple[str, ...]
    rate: float | None
    is_proxy: bool

    @property
    def reads_all(self) -> bool:
        """True if every channel may be read, also `*`."""
        return "" in self.patterns

    def allows(self, channel: str) -> bool:
        """True if *channel* may be read."""
        if channel == STAR_CHANNEL:
            return self.reads_all
        return channel in self.exact or channel.startswith(self.patterns)

    def all_granted(self) -> tuple[str, ...] | None:
        """The channels of a request that names none; None if they cannot be listed."""
        if self.reads_all:
            return (STAR_CHANNEL,)
        return tuple(sorted(self.exact)) if not self.patterns else None

    @property
    def grants(self) -> list[str]:
        """All grants, as the file has them."""
        return sorted([*self.exact, *(f"{prefix}*" for prefix in self.patterns)])

    def narrowed(self, channels: Iterable[str]) -> "Access":
        """The access of a proxy's user, who may read *channels* and nothing that the proxy may not."""
        return self._replace(exact=frozenset(filter(self.allows, channels)), patterns=(), is_proxy=False)


EVERYTHING = Access("anybody", "", frozenset(), ("",), None, is_proxy=False)
"""The access of who asks a service without authorisation."""


def new_token() -> str:
    """A token that nobody can guess."""
    return TOKEN_PREFIX + base64.urlsafe_b64encode(secrets.token_bytes(TOKEN_BYTES)).rstrip(b"=").decode()


def digest_of(token: str) -> str:
    """The hash of *token* that the file holds."""
    return hashlib.sha256(token.encode(errors="surrogateescape")).hexdigest()


def line_of(
    name: str, token: str, channels: Iterable[str], rate: float | None = None, *, is_proxy: bool = False
) -> str:
    """The line of a new token in the file.

    Raises:
        ConfigInvalid: the name or a channel cannot be written so.
    """
    if not _NAME.fullmatch(name):
        raise ConfigInvalid(f"{name!r}: a token's name must be 1 to 64 letters, digits, dots, underscores or hyphens")
    written = ",".join(_written(channel) for channel in channels)
    if not written:
        raise ConfigInvalid(f"token {name} is given no channel: name some with --channels, or '*' for all")
    parts = [name, f"sha256:{digest_of(token)}", f"channels={written}"]
    parts += [f"rate={rate:g}"] if rate else []
    return " ".join([*parts, *(["proxy"] if is_proxy else [])])


def _written(grant: str) -> str:
    star = "*" if grant.endswith("*") else ""
    name = grant.removesuffix("*")
    if "*" in name:
        raise ConfigInvalid(f"{grant!r}: a grant has one * at its end, or none")
    return quote(name, safe="!$&'()+/:;=@~[]^{}|<>?#") + star


def parse_line(line: str) -> Access:
    """The access that one line of the file gives.

    Raises:
        ValueError: it is malformed; the message says how.
    """
    name, *parts = line.split()
    if not _NAME.fullmatch(name):
        raise ValueError("the name must be 1 to 64 letters, digits, dots, underscores or hyphens")
    digest = parts.pop(0) if parts else ""
    if not _DIGEST.fullmatch(digest):
        raise ValueError("after the name must come sha256: and 64 hexadecimal digits")
    grants: list[str] = []
    rate: float | None = None
    is_proxy = False
    for part in parts:
        key, _, value = part.partition("=")
        if key == "channels" and value:
            grants += [_grant(text) for text in value.split(",") if text]
        elif key == "rate":
            rate = _rate(value)
        elif part == "proxy":
            is_proxy = True
        else:
            raise ValueError(f"{part[:80]!r} is none of channels=, rate=, proxy")
    if not grants:
        raise ValueError("channels= is missing or empty")
    exact = frozenset(grant[1:] for grant in grants if grant[0] == "=")
    patterns = tuple(sorted({grant[1:] for grant in grants if grant[0] == "*"}))
    return Access(name, digest.removeprefix("sha256:"), exact, patterns, rate, is_proxy)


def _grant(text: str) -> str:
    """`=NAME` or `*PREFIX`."""
    if "*" in text[:-1]:
        raise ValueError(f"{text[:80]!r}: a grant has one * at its end, or none")
    name = unquote(text.removesuffix("*"), errors="strict")
    return f"*{name}" if text.endswith("*") else f"={name}"


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise ValueError(f"rate={text[:80]} is no number of requests per second above 0")
    return rate


def parse_file(text: str, path: Path) -> dict[str, Access]:
    """All access that the file gives, by digest.

    Raises:
        ConfigInvalid: a line is malformed, or a name or token is there twice.
    """
    by_digest: dict[str, Access] = {}
    names: set[str] = set()
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            access = parse_line(line)
        except ValueError as error:
            raise ConfigInvalid(f"{path}, line {number}: {error}") from None
        if access.name in names or access.digest in by_digest:
            raise ConfigInvalid(f"{path}, line {number}: {access.name} is there twice")
        names.add(access.name)
        by_digest[access.digest] = access
    return by_digest


def read_file(path: Path) -> str:
    """The text of the token file.

    Raises:
        ConfigInvalid: it cannot be read, or others than its owner could have written it or can read it.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigInvalid(f"serve.tokens_file = {path}: cannot be read: {error.strerror}") from error
    if mode & 0o027:
        raise ConfigInvalid(f"serve.tokens_file = {path}: mode {mode:04o} lets others at it; chmod 0600 or 0640")
    if len(content) > MAX_FILE_BYTES:
        raise ConfigInvalid(f"serve.tokens_file = {path}: larger than {MAX_FILE_BYTES} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise ConfigInvalid(f"serve.tokens_file = {path}: is not UTF-8") from None


class Grants:
    """The token file at *path*, as it was read last.

    Raises:
        ConfigInvalid: see `read_file` and `parse_file`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = self._stamp()
        self._by_digest: Mapping[str, Access] = parse_file(read_file(path), path)

    def find(self, token: str) -> Access | None:
        """The access of *token*; None if there is no such token."""
        if len(token) > MAX_TOKEN_CHARACTERS:
            return None
        digest = digest_of(token)
        access = self._by_digest.get(digest)
        return access if access is not None and hmac.compare_digest(access.digest, digest) else None

    def reload(self) -> frozenset[str] | None:
        """Read the file again if it has changed; return the digests whose access ended or changed.

        None if it is as it was.
        A file that cannot be read, or is malformed, ends no access.

        Raises:
            ConfigInvalid: once for each change.
        """
        stamp = self._stamp()
        if stamp == self._seen:
            return None
        self._seen = stamp
        before, self._by_digest = self._by_digest, parse_file(read_file(self._path), self._path)
        return frozenset(digest for digest, access in before.items() if self._by_digest.get(digest) != access)

    def _stamp(self) -> tuple[int, ...] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino, status.st_mode


def tokens_in(headers: Mapping[bytes, bytes], cookie: str) -> str | None:
    """The token that a request carries: as Bearer, as the password of Basic, or in the cookie named *cookie*."""
    scheme, _, value = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    match scheme.lower():
        case "bearer":
            return value.strip()
        case "basic":
            try:
                pair = base64.b64decode(value.strip(), validate=True).decode()
            except (binascii.Error, ValueError):
                return ""
            return pair.partition(":")[2]
    for part in headers.get(b"cookie", b"").decode("latin-1").split(";"):
        name, _, content = part.strip().partition("=")
        if name == cookie:
            return content
    return None
