"""Escapes text from outside, so that no terminal obeys it and it cannot forge a line. Pure."""

import re
from typing import Any

_OBEYED = re.compile(
    "["
    "\x00-\x1f\x7f-\x9f"  # control characters: end of line, escape sequences, also as single characters (C1)
    "\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"
    # ends of line, turned directions, what is not seen
    "\ud800-\udfff"  # halves of characters, which no output takes
    "]"
)


def escaped(text: str) -> str:
    r"""*text* on one line, with each character that a terminal obeys as an escape like `\u001b`.

    JSON keeps its meaning: such characters occur only within its strings, where this is their escaped form. Idempotent.
    """
    return _OBEYED.sub(lambda match: _escape_of(match[0]), text)


def _escape_of(character: str) -> str:
    """The JSON escape of *character*: two for one beyond U+FFFF."""
    digits = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{digits[start : start + 4]}" for start in range(0, len(digits), 4))


def all_escaped(value: Any) -> Any:
    """*value*, as it comes from JSON, with every text in it escaped."""
    if isinstance(value, str):
        return escaped(value)
    if isinstance(value, dict):
        return {escaped(key): all_escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [all_escaped(item) for item in value]
    return value
