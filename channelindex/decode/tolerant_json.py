"""Reads JSON that Go's parser takes and msgspec does not: Sync Gateway is written in Go, JavaScript writes the rest.

Go puts U+FFFD for an unpaired surrogate and for each byte that is not UTF-8, and nests 10,000 deep. Only documents that
the fast way refuses come here. Source: Go, encoding/json (decode.go, scanner.go).
"""

import codecs
import re

import msgspec

MAX_DEPTH = 10_000
_REPLACEMENT = "\ufffd"
_HANDLER = "channelindex.go"

_ESCAPE = re.compile(rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}(\\u[dD][c-fC-F][0-9a-fA-F]{2})?|u[dD][c-fC-F]..|.)", re.DOTALL)
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_KEY = re.compile(rb"\s*(" + _STRING + rb")\s*:\s*", re.DOTALL)
_SYNC = re.compile(rb'"%s"' % b"".join(b"(?:%c|(?i:\\\\u%04x))" % (char, char) for char in b"_sync"))
_SCALAR = re.compile(_STRING + rb"|[^,{}\[\]\"\s]+", re.DOTALL)
_NEXT = re.compile(rb"\s*([,}])\s*")
_NO_BRACKETS = re.compile(rb'(?:[^"{}\[\]]++|' + _STRING + rb")*+", re.DOTALL)
_EMPTY = re.compile(rb"\s*\{\s*\}\s*")
_OPENING = re.compile(rb"\s*\{")


def _one_each(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return _REPLACEMENT * (error.end - error.start), error.end


codecs.register_error(_HANDLER, _one_each)


def repaired(text: bytes) -> bytes:
    """Return JSON *text* with U+FFFD in place of what is no character."""
    whole = text.decode("utf-8", _HANDLER).encode()
    return _ESCAPE.sub(_paired, whole) if rb"\u" in whole else whole


def _paired(match: re.Match[bytes]) -> bytes:
    escape = match[0]
    is_surrogate = escape[1:2] == b"u" and escape[2:3] in (b"d", b"D")
    return escape if match[1] or not is_surrogate else rb"\ufffd"


def names_sync(text: bytes) -> bool:
    """Return whether the string `_sync` is anywhere in *text*, each of its characters plain or escaped."""
    return _SYNC.search(text) is not None


def find_member(text: bytes, name: str) -> bytes | None:
    """Return the text of the object *text*'s last member *name*; None if it has none.

    Of the other members only quotes and brackets are looked at, so nothing in them decides but where they end.

    Raises:
        ValueError: it is no whole object, or nests deeper than Go's parser takes.
    """
    opening = _OPENING.match(text)
    if opening is None:
        raise ValueError("no object")
    found = None
    if _EMPTY.fullmatch(text):
        return found
    at = opening.end()
    while True:
        key = _KEY.match(text, at)
        if key is None:
            raise ValueError(f"no member at byte {at}")
        end = _value_end(text, key.end())
        if msgspec.json.decode(key[1]) == name:
            found = text[key.end() : end]
        following = _NEXT.match(text, end)
        if following is None:
            raise ValueError(f"the object does not go on at byte {end}")
        at = following.end()
        if following[1] == b"}":
            break
    if at < len(text):
        raise ValueError(f"trailing characters at byte {at}")
    return found


def _value_end(text: bytes, start: int) -> int:
    if text[start : start + 1] not in (b"{", b"["):
        scalar = _SCALAR.match(text, start)
        if scalar is None:
            raise ValueError(f"no value at byte {start}")
        return scalar.end()
    closing = bytearray()
    at = start
    while at < len(text):
        bracket = text[at]
        if bracket in b"{[":
            closing.append(bracket + 2)
            if len(closing) >= MAX_DEPTH:
                raise ValueError("nested too deeply")
        elif bracket != closing.pop():
            raise ValueError(f"a bracket or quote at byte {at} that does not fit")
        at += 1
        if not closing:
            return at
        rest = _NO_BRACKETS.match(text, at)
        assert rest is not None
        at = rest.end()
    raise ValueError("the text is cut off")
