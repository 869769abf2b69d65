"""Defines the contract of a decoder, which turns a mutation into the channels of its revision."""

from typing import Protocol

from channelindex.model import Principal, Route

MAX_CHANNEL_BYTES = 0xFFFF
"""Longer channel names do not fit the formats behind; no Sync Gateway accepts one."""

MAX_CHANNELS = 100_000
"""Channels of one document, those that it left included. More come of a mistake or of malice: each costs a feed worker
half a kilobyte, and 20 MB of document hold 1.4 million."""


class Undecodable(ValueError):
    """The document claims to be one of ours but cannot be understood; it is quarantined and the feed goes on."""


class Decoder(Protocol):
    """Decodes the documents of one bucket. Pure: no I/O, no state that changes an answer.

    One that can do without bodies has a second method, `needs_body(key, datatype, value) -> bool`: whether the body of
    a JSON document, left out of *value*, may change what `decode` says. Of others the feed always sends the bodies.
    """

    def decode(self, kind: int, key: bytes, datatype: int, value: bytes) -> Route | Principal | None:
        """Decode a mutation, deletion or expiration (kinds of `channelindex.feeds.base`) for the index.

        None: it gives no entry (internal key, binary, foreign document); its seqno advances the clock all the same.

        Raises:
            Undecodable: why the document cannot be understood, without quoting its body.
        """
        ...
