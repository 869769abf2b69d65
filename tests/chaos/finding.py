"""What the checker finds wrong."""

from typing import NamedTuple


class Finding(NamedTuple):
    """One thing that must not be. `kind` is one of those that docs/failure-modes.md explains; `what` names it in full.

    Of the index: "lost", "phantom", "duplicate", "wrong flag", "order", "clock", "damaged". Of readers: "missed",
    "duplicate", "before stable", "went back". Of the stable clock: "stable moved back".
    """

    kind: str
    what: str
