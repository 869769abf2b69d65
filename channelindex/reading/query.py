"""Says what a reader asks for, and leaves out of a scan what it does not. Pure."""

from collections.abc import Iterable
from functools import partial
from typing import NamedTuple, Self

from channelindex.model import DELETED, REMOVED
from channelindex.reading import since_token
from channelindex.reading.scan import Found, Scan
from channelindex.reading.since_token import Token, undelivered_upto

_GONE = DELETED | REMOVED


class Query(NamedTuple):
    """The channels and documents asked for. `asked` is the fingerprint that every token of the answer carries."""

    channels: tuple[str, ...]
    doc_ids: frozenset[str] | None
    active_only: bool
    asked: bytes

    @classmethod
    def of(cls, channels: Iterable[str], doc_ids: Iterable[str] | None, *, active_only: bool) -> Self:
        """Check what a caller gave; each channel once, in the order given.

        Raises:
            TypeError: *channels* or *doc_ids* is one string, or not of strings.
        """
        names = tuple(dict.fromkeys(_strings("channels", channels)))
        ids = None if doc_ids is None else frozenset(_strings("doc_ids", doc_ids))
        return cls(names, ids, active_only, since_token.ask(names, ids))

    def wants(self, doc_id: str) -> bool:
        """True if the document is asked for."""
        return self.doc_ids is None or doc_id in self.doc_ids

    def narrow(self, scan: Scan, read: Token) -> None:
        """Take out of *scan*, which began at *read*, what is not asked for."""
        if self.doc_ids is not None:
            for vb in scan.vbuckets():
                scan.keep(vb, lambda key, _: self.wants(document_id(key)))
        if self.active_only:
            for vb in scan.vbuckets():
                upto = undelivered_upto(read, vb)
                if upto:
                    scan.keep(vb, partial(_is_news, upto))


def document_id(key: bytes) -> str:
    """A document's key as text; bytes that are no UTF-8, which a source need not refuse, show as escapes."""
    return key.decode(errors="backslashreplace")


def _is_news(untold: int, _: bytes, found: Found) -> bool:
    return not (found[1] & _GONE and found[0] <= untold)


def _strings(name: str, given: Iterable[str]) -> list[str]:
    """*given* as a list; one string is no list of its characters."""
    if isinstance(given, (str, bytes)):
        raise TypeError(f"{name} is {given!r}, must be a list: write [{given!r}]")
    strings = list(given)
    for each in strings:
        if not isinstance(each, str):
            raise TypeError(f"{name} has {each!r}, must have strings")
    return strings
