"""Snappy, as the server compresses values: the whole value, xattrs and body together, in the raw format."""

import cramjam

from channelindex import mcbp
from channelindex.feeds.base import SNAPPY


def decompress(datatype: int, value: bytes) -> tuple[int, bytes]:
    """Datatype and value of a document, decompressed. One that cannot be is left as it is, for the decoder to refuse.

    The length that it claims is checked first: a few bytes could ask for gigabytes.
    """
    try:
        if cramjam.snappy.decompress_raw_len(value) > mcbp.MAX_BODY_BYTES:
            return datatype, value
        return datatype & ~SNAPPY, bytes(cramjam.snappy.decompress_raw(value))
    except cramjam.DecompressionError:
        return datatype, value
