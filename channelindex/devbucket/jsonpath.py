"""Reading and changing JSON text at a path of dictionary keys, as sub-document commands do. No I/O.

Array indices are not supported: they are refused as paths that cannot be parsed.
"""

from typing import Any

import orjson

from channelindex.mcbp import Op, Status

CANNOT_INSERT = 0xC5  # the value is not JSON


class PathError(Exception):
    """One path of a command failed with a status; the others may have succeeded."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status 0x{status:02x}")
        self.status = status


def split_path(path: str) -> list[str]:
    """The keys of a path: separated by dots, each may be quoted in backticks, a backtick is written twice.

    Raises:
        PathError: the path cannot be parsed.
    """
    keys = [""]
    quoted = False
    at = 0
    while at < len(path):
        char = path[at]
        if char == "`" and path[at : at + 2] == "``":
            keys[-1] += "`"
            at += 1
        elif char == "`":
            quoted = not quoted
        elif char == "." and not quoted:
            keys.append("")
        elif char in "[]" and not quoted:
            raise PathError(Status.SUBDOC_PATH_EINVAL)
        else:
            keys[-1] += char
        at += 1
    if quoted or "" in keys:
        raise PathError(Status.SUBDOC_PATH_EINVAL)
    return keys


def get(text: bytes, keys: list[str]) -> bytes:
    """The JSON text at *keys*; all of it for no keys.

    Raises:
        PathError: nothing is there.
    """
    if not keys:
        return text
    holder = _holder(_parsed(text), keys, make=False)
    if keys[-1] not in holder:
        raise PathError(Status.SUBDOC_PATH_ENOENT)
    return orjson.dumps(holder[keys[-1]])


def change(text: bytes, opcode: int, keys: list[str], value: bytes, *, make_parents: bool) -> bytes:
    """The JSON text after a dictionary command at *keys*; *make_parents* creates dictionaries on the way.

    Raises:
        PathError: the command does not fit what is there.
    """
    root = _parsed(text)
    holder = _holder(root, keys, make=make_parents)
    check_presence(opcode, present=keys[-1] in holder)
    if opcode == Op.SUBDOC_DELETE:
        del holder[keys[-1]]
    else:
        holder[keys[-1]] = parsed_value(value)
    return orjson.dumps(root)


def check_presence(opcode: int, *, present: bool) -> None:
    """Let DICT_ADD pass where nothing is, DELETE and REPLACE where something is.

    Raises:
        PathError: it is the other way round.
    """
    if present and opcode == Op.SUBDOC_DICT_ADD:
        raise PathError(Status.SUBDOC_PATH_EEXISTS)
    if not present and opcode not in (Op.SUBDOC_DICT_ADD, Op.SUBDOC_DICT_UPSERT):
        raise PathError(Status.SUBDOC_PATH_ENOENT)


def parsed_value(value: bytes) -> Any:
    """A value that a client wants to insert.

    Raises:
        PathError: it is not JSON.
    """
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise PathError(CANNOT_INSERT) from error


def _parsed(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise PathError(Status.SUBDOC_DOC_NOTJSON) from error


def _holder(root: Any, keys: list[str], *, make: bool) -> dict[str, Any]:
    """The dictionary that holds, or would hold, the last key."""
    node = root
    for key in keys[:-1]:
        if not isinstance(node, dict):
            raise PathError(Status.SUBDOC_PATH_MISMATCH)
        if key not in node:
            if not make:
                raise PathError(Status.SUBDOC_PATH_ENOENT)
            node[key] = {}
        node = node[key]
    if not isinstance(node, dict):
        raise PathError(Status.SUBDOC_PATH_MISMATCH)
    return node
