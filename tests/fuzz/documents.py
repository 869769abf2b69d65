"""Mutated documents into the decoder."""

import json
import random

import cramjam

from channelindex.decode.base import Undecodable
from channelindex.decode.sync_gateway import SyncGatewayDecoder
from channelindex.feeds.base import JSON, SNAPPY, XATTR
from channelindex.feeds.dcp.parser import decompress
from channelindex.mcbp import join_xattrs
from channelindex.model import Principal, Route
from tests.fuzz.mutation import mutated
from tests.support.shared import SHARED

_KEYS = (b"doc", b"_sync:user:alice", b"_sync:role:", b"_sync:user:db:" + b"a" * 40, b"_txn:x", b"\xff\xfe", b"")
_DATATYPES = (JSON, XATTR, JSON | XATTR, JSON, JSON | XATTR, 0, SNAPPY, 7, 0xFF)


def seeds() -> list[bytes]:
    """Values with metadata in every place and form."""
    sync = b'{"rev":"2-b","flags":1,"sequence":9,"channels":{"A":null,"B":{"seq":9,"rev":"2-b","del":true}}}'
    version = b'{"rev":{"rev":"1-a","src":"s","ver":"0x1"},"sequence":3,"channels":{"\xc3\xa9":null}}'
    made = [
        b'{"_sync":%s,"a":[1,2.5e300,"\\ud83d\\ude00"]}' % sync,
        join_xattrs([("_sync", sync), ("_vv", b"{}")], b'{"a":1}'),
        join_xattrs([("user", b"1"), ("_sync", version)], b""),
        bytes(cramjam.snappy.compress_raw(join_xattrs([("_sync", sync)], b"{}" * 50))),
    ]
    files = sorted((SHARED / "golden" / "decode").glob("*.json"))
    recorded = [json.loads(path.read_text()).get("dcp_value_hex", "") for path in files]
    return made + [bytes.fromhex(value) for value in recorded if value]


class DocumentTarget:
    """Decodes one case after the other."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._seeds = seeds()
        self._decoder = SyncGatewayDecoder()
        self.n_rejected = 0

    def case(self, number: int) -> tuple[int, bytes, int, bytes]:
        """Kind, key, datatype and value of a case."""
        chance = random.Random(f"{self._seed}:{number}")
        return chance.randrange(3), chance.choice(_KEYS), chance.choice(_DATATYPES), mutated(chance, self._seeds)

    def run(self, number: int) -> None:
        """Run a case. Raises whatever the decoder must not raise."""
        kind, key, datatype, value = self.case(number)
        if datatype & SNAPPY:
            datatype, value = decompress(datatype, value)
        self._decoder.needs_body(key, datatype, value)
        try:
            found = self._decoder.decode(kind, key, datatype, value)
        except Undecodable:
            self.n_rejected += 1
            return
        assert found is None or isinstance(found, Route | Principal)
