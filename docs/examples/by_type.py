"""A decoder of one's own: every JSON document is in one channel, named after its property "type".

source.decoder = "by_type:make", with the folder of this file on PYTHONPATH.
"""

import json
import zlib

from channelindex.decode.base import Undecodable
from channelindex.feeds.base import JSON, MUTATION
from channelindex.model import DELETED, STAR_CHANNEL, Route


class ByType:
    """Takes the checksum of the body for a revision id: documents of plain applications have none."""

    def __init__(self, star_channel: bool) -> None:
        self._always: dict[str, None] = {STAR_CHANNEL: None} if star_channel else {}

    def decode(self, kind: int, key: bytes, datatype: int, value: bytes) -> Route | None:  # noqa: ARG002
        """The channel of one document. A deletion has no body to name it, so it is in the channel "deleted" instead."""
        if kind != MUTATION:
            return Route("deleted", DELETED, 0, {"deleted": None, **self._always})
        if datatype != JSON:
            return None
        try:
            document_type = json.loads(value)["type"]
        except (ValueError, KeyError, TypeError) as error:
            raise Undecodable(f"no property type: {type(error).__name__}") from None
        return Route(f"{zlib.crc32(value):08x}", 0, 0, {f"type-{document_type}": None, **self._always})


def make(star_channel: bool) -> ByType:
    """What source.decoder names."""
    return ByType(star_channel)
