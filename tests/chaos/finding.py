"""What the checker finds wrong."""

from typing import NamedTuple


class Finding(NamedTuple):
    """One thing that must not be, and `what` it is, in full. The kinds are the following; each rule says what it means.

    Of the index: "lost", "phantom", "duplicate", "wrong flag", "order", "clock", "damaged". Of readers: "missed",
    "duplicate", "before stable", "went back". Of the stable clock: "stable moved back".
    """

    kind: str
    what: str
