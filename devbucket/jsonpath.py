"""Reading and changing JSON at a path, as sub-document commands do. No I/O.

Works on parsed JSON, so that several changes of one document parse and write it once. Source: couchbase/kv_engine
docs/SubDocument.md.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import orjson

from channelindex.mcbp import Op, Status

CANNOT_INSERT = 0xC5  # the value is not JSON, or not of the kind that the command inserts
DELTA_INVALID = 0xC8
NUMBER_RANGE = 0xC7

COUNTER_LIMIT = 1 << 63

Step = str | int
"""A key of a dictionary, or an index of an array; -1 is the last one."""


class PathError(Exception):
    """One path of a command failed with a status; the others may have succeeded."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status 0x{status:02x}")
        self.status = status


@lru_cache(1024)  # clients send the same few paths all the time
def split_path(path: str) -> tuple[Step, ...]:
    """Return the steps of a path: keys between dots, a key may be quoted in backticks; indices in brackets behind it.

    Raises:
        PathError: the path cannot be parsed.
    """
    steps: list[Step] = []
    at = 0
    step: Step
    while at < len(path):
        if path[at] == "[":
            step, at = _index(path, at)
        elif steps and path[at] != ".":
            raise PathError(Status.SUBDOC_PATH_EINVAL)
        else:
            step, at = _key(path, at + bool(steps))
        steps.append(step)
    if not steps:
        raise PathError(Status.SUBDOC_PATH_EINVAL)
    return tuple(steps)


def _index(path: str, at: int) -> tuple[int, int]:
    """Return the index in brackets that begins at *at*, and the place behind it. Of negative ones there is only -1."""
    end = path.find("]", at)
    text = path[at + 1 : end]
    if end < 0 or not (text == "-1" or (text.isascii() and text.isdigit())):
        raise PathError(Status.SUBDOC_PATH_EINVAL)
    return int(text), end + 1


def _key(path: str, at: int) -> tuple[str, int]:
    """Return the key that begins at *at*, and the place behind it. A backtick in a key is written twice."""
    key = ""
    quoted = False
    while at < len(path) and (quoted or path[at] not in ".["):
        if path[at : at + 2] == "``":
            key += "`"
            at += 1
        elif path[at] == "`":
            quoted = not quoted
        elif path[at] == "]" and not quoted:
            raise PathError(Status.SUBDOC_PATH_EINVAL)
        else:
            key += path[at]
        at += 1
    if quoted or not key:
        raise PathError(Status.SUBDOC_PATH_EINVAL)
    return key, at


def parse(text: bytes) -> Any:
    """Return a document's JSON.

    Raises:
        PathError: it is none.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise PathError(Status.SUBDOC_DOC_NOTJSON) from error


def get(node: Any, steps: Sequence[Step]) -> Any:
    """Return what is at *steps*; all for no steps.

    Raises:
        PathError: nothing is there.
    """
    for step in steps:
        if not _has(node, step):
            raise PathError(Status.SUBDOC_PATH_ENOENT)
        node = node[step]
    return node


def count(node: Any, steps: Sequence[Step]) -> int:
    """Return how many elements the array or the dictionary at *steps* has.

    Raises:
        PathError: nothing is there, or something else.
    """
    found = get(node, steps)
    if not isinstance(found, (dict, list)):
        raise PathError(Status.SUBDOC_PATH_MISMATCH)
    return len(found)


def change(root: Any, opcode: int, steps: Sequence[Step], text: bytes, *, make_parents: bool) -> bytes:
    """Carry out a command at *steps* of *root*; returns what it answers, which only a counter does.

    *make_parents* creates what is missing on the way.

    Raises:
        PathError: the command does not fit what is there.
    """
    if opcode in _ARRAY_COMMANDS:
        _ARRAY_COMMANDS[opcode](_array(root, steps, make=make_parents), parse_values(text))
        return b""
    if not steps or (isinstance(steps[-1], int) and opcode not in _INDEX_COMMANDS):
        raise PathError(Status.SUBDOC_PATH_EINVAL)
    holder, step = _holder(root, steps, make=make_parents), steps[-1]
    if opcode == Op.SUBDOC_ARRAY_INSERT:
        _insert(holder, step, parse_values(text))
    elif opcode == Op.SUBDOC_COUNTER:
        holder[step] = _counted(holder[step] if _has(holder, step) else 0, text)
        return orjson.dumps(holder[step])
    else:
        _change_member(holder, step, opcode, text)
    return b""


def check_presence(opcode: int, *, present: bool) -> None:
    """Let DICT_ADD pass where nothing is, DELETE and REPLACE where something is.

    Raises:
        PathError: it is the other way round.
    """
    assert opcode in CHANGES, "what reads needs no look"
    if present and opcode == Op.SUBDOC_DICT_ADD:
        raise PathError(Status.SUBDOC_PATH_EEXISTS)
    if not present and opcode not in (Op.SUBDOC_DICT_ADD, Op.SUBDOC_DICT_UPSERT):
        raise PathError(Status.SUBDOC_PATH_ENOENT)


def parse_value(text: bytes) -> Any:
    """Return a value that a client wants to insert.

    Raises:
        PathError: it is not JSON.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise PathError(CANNOT_INSERT) from error


def parse_values(text: bytes) -> list[Any]:
    """Return the values, separated by commas, that a client wants to insert into an array."""
    values: list[Any] = parse_value(b"[" + text + b"]")
    if not values:
        raise PathError(CANNOT_INSERT)
    return values


def _change_member(holder: Any, step: Step, opcode: int, text: bytes) -> None:
    check_presence(opcode, present=_has(holder, step))
    if opcode == Op.SUBDOC_DELETE:
        del holder[step]
    else:
        holder[step] = parse_value(text)


def _has(holder: Any, step: Step) -> bool:
    """Return whether *holder* has a member *step*.

    Raises:
        PathError: it is no dictionary, or no array.
    """
    if not isinstance(holder, dict if isinstance(step, str) else list):
        raise PathError(Status.SUBDOC_PATH_MISMATCH)
    return step in holder if isinstance(step, str) else -1 <= step < len(holder) and bool(holder)


def _holder(root: Any, steps: Sequence[Step], *, make: bool) -> Any:
    """Return the dictionary or array that holds, or would hold, the last step."""
    assert steps, "the whole document has no holder"
    node = root
    for step, following in pairwise(steps):
        if not _has(node, step):
            if not make or isinstance(step, int) or isinstance(following, int):
                raise PathError(Status.SUBDOC_PATH_ENOENT)
            node[step] = {}
        node = node[step]
    _has(node, steps[-1])
    return node


def _array(root: Any, steps: Sequence[Step], *, make: bool) -> list[Any]:
    """Return the array at *steps*; a new one if none is there."""
    if steps:
        holder, step = _holder(root, steps, make=make), steps[-1]
        if not _has(holder, step):
            if not make or isinstance(step, int):
                raise PathError(Status.SUBDOC_PATH_ENOENT)
            holder[step] = []
        root = holder[step]
    if not isinstance(root, list):
        raise PathError(Status.SUBDOC_PATH_MISMATCH)
    return root


def _insert(array: Any, step: Step, values: list[Any]) -> None:
    if not isinstance(step, int) or step < 0:
        raise PathError(Status.SUBDOC_PATH_EINVAL)
    if step > len(array):
        raise PathError(Status.SUBDOC_PATH_ENOENT)
    array[step:step] = values


def _push_first(array: list[Any], values: list[Any]) -> None:
    array[:0] = values


def _add_unique(array: list[Any], values: list[Any]) -> None:
    """Add one value that is neither dictionary nor array, to an array of such values."""
    assert values, "`parse_values` refuses none"
    if len(values) > 1 or isinstance(values[0], (dict, list)):
        raise PathError(CANNOT_INSERT)
    if any(isinstance(member, (dict, list)) for member in array):
        raise PathError(Status.SUBDOC_PATH_MISMATCH)
    if any(member == values[0] and type(member) is type(values[0]) for member in array):
        raise PathError(Status.SUBDOC_PATH_EEXISTS)
    array.append(values[0])


def _counted(number: Any, text: bytes) -> int:
    delta = parse_value(text)
    if type(delta) is not int or not delta:
        raise PathError(DELTA_INVALID)
    if type(number) is not int:
        raise PathError(Status.SUBDOC_PATH_MISMATCH)
    if not -COUNTER_LIMIT <= number + delta < COUNTER_LIMIT:
        raise PathError(NUMBER_RANGE)
    return number + delta


_ARRAY_COMMANDS: dict[int, Callable[[list[Any], list[Any]], None]] = {
    Op.SUBDOC_ARRAY_PUSH_LAST: list.extend,
    Op.SUBDOC_ARRAY_PUSH_FIRST: _push_first,
    Op.SUBDOC_ARRAY_ADD_UNIQUE: _add_unique,
}
_INDEX_COMMANDS = frozenset({Op.SUBDOC_ARRAY_INSERT, Op.SUBDOC_COUNTER, Op.SUBDOC_DELETE, Op.SUBDOC_REPLACE})
"""Operations on a member of an array."""

CHANGES = frozenset(
    {
        *_ARRAY_COMMANDS,
        Op.SUBDOC_ARRAY_INSERT,
        Op.SUBDOC_COUNTER,
        Op.SUBDOC_DELETE,
        Op.SUBDOC_DICT_ADD,
        Op.SUBDOC_DICT_UPSERT,
        Op.SUBDOC_REPLACE,
    }
)
"""All commands that change something at a path."""
