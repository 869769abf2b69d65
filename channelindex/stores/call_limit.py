"""Limits the size of one call of a store: smaller where the store refuses requests for their size."""

from collections.abc import Sequence

from channelindex import logs
from channelindex.blocks import iter_entries, pack_entry
from channelindex.errors import RequestTooLarge
from channelindex.stores.base import ChannelAppend

_log = logs.get("store")


class CallLimit:
    """The bytes of entries that go into one call. Hosted stores limit requests, often to 1 MB, and nothing tells."""

    def __init__(self, n_bytes: int) -> None:
        self.n_bytes = n_bytes
        self.is_lowered = False
        """Set where appends have to `fit`: until then, what one ring holds of one channel is far less."""

    def fit(self, appends: Sequence[ChannelAppend]) -> Sequence[ChannelAppend]:
        """Return *appends*, those that are too large for a call of their own in pieces."""
        return [piece for append in appends for piece in split(append, self.n_bytes)]

    def lower(self, refused: Sequence[ChannelAppend], error: RequestTooLarge) -> None:
        """Halve the limit after a call with *refused* was refused with *error*.

        Raises:
            RequestTooLarge: it was a single entry.
        """
        if sum(len(split(append, 1)) for append in refused) <= 1:
            raise error
        n_bytes = sum(len(append.entries) for append in refused)
        self.n_bytes = max(1, min(self.n_bytes, n_bytes) // 2)
        self.is_lowered = True
        _log.warning("store.request_too_large", bytes=n_bytes, limit=self.n_bytes, msg=str(error))


def split(append: ChannelAppend, n_bytes: int) -> list[ChannelAppend]:
    """Split *append* into pieces of at most *n_bytes* of entries, and at least one entry, in their order."""
    if len(append.entries) <= n_bytes:
        return [append]
    pieces: list[bytes] = [b""]
    for entry in iter_entries(append.entries):
        packed = pack_entry(entry)
        if pieces[-1] and len(pieces[-1]) + len(packed) > n_bytes:
            pieces.append(b"")
        pieces[-1] += packed
    return [append._replace(entries=piece) for piece in pieces]
