"""Streams without documents' bodies: a large part of a bucket's bytes, where the metadata is in an xattr.

A feed that chooses by itself begins without bodies, and takes them as soon as one document comes that may have its
metadata in its body: from exactly that document on, so that none is judged by what was left out of it.
"""

from collections.abc import Callable

from channelindex.errors import ChannelIndexError

NeedsBody = Callable[[bytes, int, bytes], bool]
"""Of a mutation's key, datatype and value without body: whether the body may matter. Called for JSON documents only."""


class BodiesNeeded(ChannelIndexError):
    """A stream without bodies cannot go on, or the server knows no such streams. Nothing behind it was taken."""
