"""The example of docs/decoders.md works as it says."""

from pathlib import Path

import pytest

from channelindex.decode.base import Undecodable
from channelindex.decode.registry import make_decoder
from channelindex.feeds.base import DELETION, JSON, MUTATION
from channelindex.model import DELETED, Route

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"


def test_the_example_of_the_documentation_is_a_decoder(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    decoder = make_decoder("by_type:make", star_channel=True)
    route = decoder.decode(MUTATION, b"doc", JSON, b'{"type":"order"}')
    assert isinstance(route, Route)
    assert dict(route.channels) == {"type-order": None, "*": None}
    assert decoder.decode(MUTATION, b"doc", 0, b"binary") is None
    deletion = decoder.decode(DELETION, b"doc", 0, b"")
    assert isinstance(deletion, Route)
    assert deletion.flags == DELETED
    with pytest.raises(Undecodable):
        decoder.decode(MUTATION, b"doc", JSON, b"[1]")
