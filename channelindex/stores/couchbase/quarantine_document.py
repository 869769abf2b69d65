"""The quarantined documents: the newest of them, and how many there ever were, in one document."""

from collections.abc import Sequence

import msgspec

from channelindex.errors import IndexCorrupt
from channelindex.stores.base import Quarantined
from channelindex.stores.couchbase.link import Stored
from channelindex.stores.records import QUARANTINE_DOCUMENTS


class Quarantine(msgspec.Struct, array_like=True):
    """The number of all records, and the newest of them, newest first."""

    total: int
    documents: list[Quarantined]

    def add(self, documents: Sequence[Quarantined]) -> None:
        """Put *documents*, of which the last is the newest, before the others."""
        self.total += len(documents)
        self.documents = [*reversed(documents), *self.documents][:QUARANTINE_DOCUMENTS]

    def remove(self, documents: Sequence[Quarantined]) -> None:
        """Take exactly *documents* out; they stay counted."""
        forgotten = set(documents)
        self.documents = [document for document in self.documents if document not in forgotten]


_decoder = msgspec.msgpack.Decoder(Quarantine)
encode_quarantine = msgspec.msgpack.Encoder().encode


def decode_quarantine(stored: Stored | None, key: str) -> Quarantine:
    """Decode the quarantine's document; an empty quarantine if there is none.

    Raises:
        IndexCorrupt: it is something else.
    """
    if stored is None:
        return Quarantine(0, [])
    try:
        return _decoder.decode(stored.value)
    except msgspec.MsgspecError as error:
        raise IndexCorrupt(f"{key}: {error}") from error
