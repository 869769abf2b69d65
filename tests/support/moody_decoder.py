"""A decoder that refuses the documents whose keys a file lists. `source.decoder` names `make`."""

import os
from pathlib import Path

from channelindex.decode.base import Decoder, Undecodable
from channelindex.decode.registry import SYNC_GATEWAY, make_decoder
from channelindex.model import Principal, Route

VARIABLE = "MOODY_DECODER_REFUSES"


class MoodyDecoder:
    """Otherwise Sync Gateway's own."""

    def __init__(self, inner: Decoder, refused: Path) -> None:
        self._inner = inner
        self._refused = refused

    def decode(self, kind: int, key: bytes, datatype: int, value: bytes) -> Route | Principal | None:
        """See `Decoder.decode`."""
        if repr(key) in self._refused.read_text().splitlines():
            raise Undecodable("not today\x1b[2J\nlevel=error event=forged")
        return self._inner.decode(kind, key, datatype, value)


def make(star_channel: bool) -> MoodyDecoder:
    """What source.decoder names."""
    return MoodyDecoder(make_decoder(SYNC_GATEWAY, star_channel=star_channel), Path(os.environ[VARIABLE]))
