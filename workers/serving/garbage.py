"""Keeps Python's garbage collections brief in a process with tens of thousands of connections.

A full collection looks at every object, which holds up the event loop for 0.3 s per 10,000 followers, and comes every
few seconds under load, though there is next to nothing to collect: what connections hold is freed by its references.
So what has survived a full collection is not looked at in the next ones.
"""

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

WHOLE_EVERY_S = 600.0
"""Cycles that have died since a full collection wait at least so long to be collected."""
_OLDEST = 2


@contextmanager
def brief_collections(monotonic: Callable[[], float] = time.monotonic) -> Iterator[None]:
    """Have full collections look only at what is newer than the last one; at all again after WHOLE_EVERY_S."""
    whole_at = monotonic() + WHOLE_EVERY_S

    def on_collection(phase: str, info: Mapping[str, Any]) -> None:
        nonlocal whole_at
        if info["generation"] != _OLDEST:
            return
        if phase == "stop":
            gc.freeze()
        elif monotonic() >= whole_at:
            whole_at = monotonic() + WHOLE_EVERY_S
            gc.unfreeze()

    gc.callbacks.append(on_collection)
    try:
        yield
    finally:
        gc.callbacks.remove(on_collection)
        gc.unfreeze()
