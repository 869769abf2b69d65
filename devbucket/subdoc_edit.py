"""A document while a sub-document command changes it: body and xattrs, each parsed and written at most once. No I/O."""

from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import google_crc32c
import orjson

from channelindex.mcbp import Op, Status
from devbucket import jsonpath
from devbucket.items import system_xattrs
from devbucket.jsonpath import PathError, Step

REPLACE_BODY_WITH_XATTR = 0xD3
"""An opcode that only occurs inside a multi-path command, as whole-document SET and DELETE do (0x01 and 0x04)."""

INVALID_COMBO = 0xCB
UNKNOWN_MACRO = 0xD0


class PathFlag(IntEnum):
    """Flags of one path: plain numbers, because a set of IntFlags costs more than the rest of a small command."""

    MAKE_PARENTS = 0x01
    XATTR = 0x04
    EXPAND_MACROS = 0x10


class Spec(NamedTuple):
    """One path of a command."""

    opcode: int
    flags: int
    path: str
    value: bytes


class Macros(NamedTuple):
    """The seqno and CAS of the change, for macros."""

    cas: int
    seqno: int


class _Text:
    """JSON text, parsed when somebody looks inside and written anew only if that one changed something."""

    def __init__(self, text: bytes) -> None:
        self._text = text
        self._tree: Any = None
        self._changed = False

    def tree(self, *, to_change: bool = False) -> Any:
        """Return the parsed JSON.

        Raises:
            PathError: the text is not JSON.
        """
        if self._tree is None:
            self._tree = jsonpath.parse(self._text)
        self._changed |= to_change
        return self._tree

    def text(self) -> bytes:
        """Return the text as of now."""
        if self._changed:
            self._text, self._changed = orjson.dumps(self._tree), False
        return self._text


class SubdocEdit:
    """A document to be changed: `alive`: it will be one, else a tombstone."""

    def __init__(self, xattrs: dict[str, bytes], body: bytes, *, alive: bool) -> None:
        self.alive = alive
        self._body = _Text(body)
        self._xattrs = {name: _Text(text) for name, text in xattrs.items()}

    @property
    def body(self) -> bytes:
        """Return the body as of now."""
        return self._body.text()

    @property
    def xattrs(self) -> dict[str, bytes]:
        """Return the xattrs as of now."""
        return {name: xattr.text() for name, xattr in self._xattrs.items()}

    def apply(self, spec: Spec, macros: Macros, *, make_parents: bool) -> bytes:
        """Carry out one path; returns what it answers, which only a counter does.

        Raises:
            PathError: the path does not fit what is there.
        """
        if not spec.path and spec.opcode in (Op.SET, Op.DELETE):
            self._apply_to_document(spec)
            return b""
        if spec.opcode == REPLACE_BODY_WITH_XATTR:
            self._replace_body(jsonpath.split_path(spec.path))
            return b""
        if spec.opcode not in jsonpath.CHANGES:
            raise PathError(INVALID_COMBO)
        make_parents = make_parents or bool(spec.flags & PathFlag.MAKE_PARENTS)
        if spec.flags & PathFlag.XATTR:
            return self._apply_to_xattr(spec, self._expanded(spec, macros), make_parents=make_parents)
        steps = jsonpath.split_path(spec.path) if spec.path else ()
        tree = self._body.tree(to_change=True)
        return jsonpath.change(tree, spec.opcode, steps, spec.value, make_parents=make_parents)

    def _apply_to_document(self, spec: Spec) -> None:
        if spec.opcode == Op.SET:
            self._body, self.alive = _Text(spec.value), True
            return
        self._body, self.alive = _Text(b""), False
        kept = system_xattrs(self.xattrs)
        self._xattrs = {name: xattr for name, xattr in self._xattrs.items() if name in kept}

    def _replace_body(self, steps: Sequence[Step]) -> None:
        name, rest = str(steps[0]), steps[1:]
        if name not in self._xattrs:
            raise PathError(Status.SUBDOC_PATH_ENOENT)
        self._body, self.alive = _Text(orjson.dumps(jsonpath.get(self._xattrs[name].tree(), rest))), True

    def _apply_to_xattr(self, spec: Spec, value: bytes, *, make_parents: bool) -> bytes:
        """Change an xattr or something in it. A whole xattr keeps the text that the client sent."""
        steps = jsonpath.split_path(spec.path)
        name, rest = str(steps[0]), steps[1:]
        present = name in self._xattrs
        if rest or spec.opcode not in _WHOLE_XATTR:
            return self._change_in_xattr(name, spec.opcode, rest, value, make_parents=make_parents)
        jsonpath.check_presence(spec.opcode, present=present)
        if spec.opcode == Op.SUBDOC_DELETE:
            del self._xattrs[name]
        else:
            jsonpath.parse_value(value)
            self._xattrs[name] = _Text(value)
        return b""

    def _change_in_xattr(
        self, name: str, opcode: int, rest: Sequence[Step], value: bytes, *, make_parents: bool
    ) -> bytes:
        if name not in self._xattrs and not make_parents:
            raise PathError(Status.SUBDOC_PATH_ENOENT)
        xattr = self._xattrs.get(name, _Text(b"{}" if rest else b"[]"))
        answer = jsonpath.change(xattr.tree(to_change=True), opcode, rest, value, make_parents=make_parents)
        self._xattrs[name] = xattr
        return answer

    def _expanded(self, spec: Spec, macros: Macros) -> bytes:
        """Return the value of a path, its macro replaced by what this change gets. The CAS is written byte-swapped."""
        if not spec.flags & PathFlag.EXPAND_MACROS:
            return spec.value
        if spec.value == b'"${Mutation.CAS}"':
            return f'"0x{macros.cas.to_bytes(8, "little").hex()}"'.encode()
        if spec.value == b'"${Mutation.seqno}"':
            return f'"0x{macros.seqno:016x}"'.encode()
        if spec.value == b'"${Mutation.value_crc32c}"':
            return f'"0x{google_crc32c.value(self.body):08x}"'.encode()
        raise PathError(UNKNOWN_MACRO)


_WHOLE_XATTR = frozenset({Op.SUBDOC_DICT_ADD, Op.SUBDOC_DICT_UPSERT, Op.SUBDOC_DELETE, Op.SUBDOC_REPLACE})
