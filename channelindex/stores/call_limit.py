"""Limits the size of one call of a store: smaller where the store refuses requests for their size."""

from collections.abc import Sequence

from channelindex import logs
from channelindex.blocks import iter_entries, pack_entry
from channelindex.errors import RequestTooLarge
from channelindex.stores.base import ChannelAppend

_log = logs.get("store")


class CallLimit:
    """The bytes of entries that go into one call. Hosted stores limit requests, often to 1 MB, and do not say so."""

    def __init__(self, n_bytes: int) -> None:
        assert n_bytes > 0
        self.n_bytes = n_bytes
        self.is_lowered = False
        """Set where appends have to `fit`: until then, what one ring holds of one channel is far less."""

    def fit(self, appends: Sequence[ChannelAppend]) -> Sequence[ChannelAppend]:
        """Return *appends*, those that are too large for a call of their own in pieces."""
        return [piece for append in appends for piece in split(append, self.n_bytes)]

    def lower(self, refused: Sequence[bytes], error: RequestTooLarge) -> None:
        """Halve the limit after a call was refused with *error* that had to append *refused*, packed entries.

        Raises:
            RequestTooLarge: it was a single entry.
        """
        if sum(len(_pieces(entries, 1)) for entries in refused) <= 1:
            raise error
        n_bytes = sum(map(len, refused))
        self.n_bytes = max(1, min(self.n_bytes, n_bytes) // 2)
        assert self.n_bytes <= max(1, n_bytes // 2), "the same call would be refused again"
        self.is_lowered = True
        _log.warning("store.request_too_large", bytes=n_bytes, limit=self.n_bytes, msg=str(error))


def split(append: ChannelAppend, n_bytes: int) -> list[ChannelAppend]:
    """Split *append* into pieces of at most *n_bytes* of entries, and at least one entry, in their order."""
    assert n_bytes > 0
    if len(append.entries) <= n_bytes:
        return [append]
    return [append._replace(entries=piece) for piece in _pieces(append.entries, n_bytes)]


def _pieces(entries: bytes, n_bytes: int) -> list[bytes]:
    pieces: list[bytes] = [b""]
    for entry in iter_entries(entries):
        packed = pack_entry(entry)
        if pieces[-1] and len(pieces[-1]) + len(packed) > n_bytes:
            pieces.append(b"")
        pieces[-1] += packed
    assert sum(map(len, pieces)) == len(entries), "nothing is lost between two pieces"
    return pieces
