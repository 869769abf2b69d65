"""Mutated frames into a session with open streams."""

import random
import struct
from dataclasses import replace

import cramjam

from channelindex import mcbp
from channelindex.errors import (
    AuthenticationFailed,
    ConfigInvalid,
    InvariantBroken,
    ProtocolError,
    SourceUnavailable,
)
from channelindex.feeds.base import JSON, SNAPPY, XATTR
from channelindex.feeds.dcp.messages import BodiesNeeded
from channelindex.feeds.dcp.session import Session
from channelindex.feeds.dcp.topology import parse_cluster_map
from channelindex.mcbp import SERVER_REQUEST, Op, join_xattrs, pack_request, pack_response
from tests.fuzz.mutation import mutated
from tests.support import dcp_wire as wire
from tests.support.dcp_replay import ADDRESS, OPTIONS, cluster_config, open_streams
from tests.support.recording import read_recording
from tests.support.shared import SHARED

CASES_PER_SESSION = 20
ALLOWED = (ProtocolError, AuthenticationFailed, ConfigInvalid, SourceUnavailable, InvariantBroken, BodiesNeeded)
"""ProtocolError for what is malformed. The others for what is not: a frame may say that we lost our privileges (or that
a stream's collections were dropped, a range is wrong, a bucket is not there yet), whoever changed it to say so."""
_SEED_BYTES = 4096
_MOST_PER_BYTE = 1.0
_ASKED = range((1 << 31) + 8, (1 << 31) + 12)
"""Opaques of requests that open no stream, some of which have no answer yet."""
_OPAQUE = 1
"""That of the first stream of `open_streams`; the second has the next one."""


def seeds() -> list[bytes]:
    """Frames of every kind that a server sends, and those that a real one sent, if the recordings are there."""
    return _made() + _recorded()


def _made() -> list[bytes]:
    xattrs = join_xattrs([("_sync", b'{"rev":"1-a"}')], b"{}")
    packed = bytes(cramjam.snappy.compress_raw(xattrs * 20))
    opaque = _OPAQUE
    return [
        wire.mutation(opaque, 0, 1, b"key", b'{"a":1}', datatype=JSON),
        wire.mutation(opaque, 0, 2, b"key", xattrs, datatype=JSON | XATTR),
        wire.mutation(opaque, 0, 3, b"key", packed, datatype=JSON | XATTR | SNAPPY),
        wire.mutation(opaque, 0, 4, b"k" * 250, b"", more_extras=b"xx"),
        wire.deletion(opaque, 0, 5, b"key"),
        wire.deletion(opaque, 0, 6, b"key", delete_time=7),
        wire.expiration(opaque, 0, 7, b"key"),
        wire.prepare(opaque, 0, 8, b"key"),
        wire.marker(opaque, 0, 0, 99),
        wire.marker_2(opaque, 0, 0, 99),
        wire.marker_2_2(opaque, 0, 0, 99, 7),
        wire.stream_frame(Op.DCP_SEQNO_ADVANCED, opaque, 0, struct.pack(">Q", 9)),
        wire.stream_frame(
            Op.DCP_SYSTEM_EVENT, opaque, 0, struct.pack(">QIB", 9, 0, 1), b"name", struct.pack(">QII", 1, 8, 9)
        ),
        wire.stream_frame(Op.DCP_ABORT, opaque, 0, struct.pack(">QQ", 8, 9), b"key"),
        wire.stream_frame(Op.DCP_COMMIT, opaque, 0, struct.pack(">QQ", 8, 9), b"key"),
        wire.stream_frame(Op.DCP_OSO_SNAPSHOT, opaque, 0, struct.pack(">I", 1)),
        *(wire.stream_end(opaque, 0, reason) for reason in range(9)),
        pack_request(Op.DCP_NOOP, opaque=77),
        pack_request(
            mcbp.CLUSTERMAP_CHANGED, magic=SERVER_REQUEST, extras=bytes(4), key=b"default", value=cluster_config(11210)
        ),
        *(
            pack_response(opcode, status=status, opaque=asked, value=value)
            for asked in (opaque, *_ASKED)
            for opcode in (Op.DCP_STREAM_REQ, Op.GET_ALL_VB_SEQNOS, Op.DCP_GET_FAILOVER_LOG, Op.GET_CLUSTER_CONFIG)
            for status, value in (
                (0, wire.failover_log((1, 0))),
                (0x23, bytes(8)),
                (7, cluster_config(1)),
                (0x24, b"{}"),
            )
        ),
    ]


def _recorded() -> list[bytes]:
    """The server's frames, each changed to belong to an open stream where it belongs to one at all."""
    frames: set[bytes] = set()
    for path in sorted((SHARED / "golden").glob("*.jsonl*")):
        for line in read_recording(path):
            if line.direction == "s2c" and 24 <= len(line.data) <= _SEED_BYTES:
                frames.add(line.data[:12] + _OPAQUE.to_bytes(4, "big") + line.data[16:])
    return sorted(frames)


class FrameTarget:
    """Feeds one case after the other to a session, and to another one when that is over."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._seeds = seeds()
        self._session: Session | None = None
        self._left = 0
        self.n_rejected = 0

    def case(self, number: int) -> bytes:
        """The bytes of a case: up to three frames, one of them mutated."""
        chance = random.Random(f"{self._seed}:{number}")
        before = chance.choice(self._seeds) if chance.random() < 0.3 else b""
        return before + mutated(chance, self._seeds) + (chance.choice(self._seeds) if chance.random() < 0.3 else b"")

    def run(self, number: int) -> None:
        """Run a case. Raises whatever the session must not raise."""
        data = self.case(number)
        session = self._session if self._session and self._left else self._open()
        self._left -= 1
        try:
            cut = len(data) // 2 if number % 2 else len(data)
            session.receive(data[:cut], float(number))
            session.receive(data[cut:], float(number))
            session.acknowledge()
            session.tick(float(number))
        except ALLOWED:
            self.n_rejected += 1
            self._left = 0
        self._check(session, len(data))

    def _open(self) -> Session:
        def on_config(text: bytes) -> None:
            parse_cluster_map(text, ADDRESS.seeds[0], ADDRESS)

        options = replace(OPTIONS, needs_body=lambda key, datatype, value: not value)
        self._session, _, opaques = open_streams(0, 1, options=options, on_config=on_config)
        assert min(opaques.values()) == _OPAQUE
        self._left = CASES_PER_SESSION
        return self._session

    def _check(self, session: Session, n_bytes: int) -> None:
        """What a session keeps is bounded by what it was sent."""
        parser = session._parser
        assert len(session.take_events()) <= n_bytes * _MOST_PER_BYTE
        assert len(session.outgoing) < 100_000
        assert len(session._answer_by_opaque) < 200
        held = sum(map(len, parser._held))
        assert held <= mcbp.MAX_BODY_BYTES + mcbp.HEADER_BYTES
        if held:
            self._left = 0  # it would take all that follows for the rest of one frame
        session.outgoing.clear()
