"""Drives a `Session` with what a real server sent on a recorded connection."""

import itertools
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

import msgspec

from channelindex import mcbp
from channelindex.feeds.base import Event
from channelindex.feeds.dcp.auth import Credentials
from channelindex.feeds.dcp.connstr import Endpoint, SourceAddress
from channelindex.feeds.dcp.handshake import ProducerOptions
from channelindex.feeds.dcp.session import Session, SessionOptions
from channelindex.feeds.dcp.streams import State, Stream, Streams
from channelindex.mcbp import Frame, Op, Status, pack_response, take_frame
from channelindex.model import ORIGIN, Checkpoint
from tests.support.recording import Line

HANDSHAKE_OPCODES = (Op.HELLO, Op.SASL_LIST_MECHS, Op.SASL_AUTH, Op.SASL_STEP, Op.SELECT_BUCKET)
BUCKET_UUID = "11112222333344445555666677778888"
ADDRESS = SourceAddress((Endpoint("127.0.0.1", 11210),), "default")
_STRICT_VBUUID = 0x20
OPTIONS = SessionOptions(ADDRESS, Credentials(), ProducerOptions("test", 1000, 20))


def sent(session: Session) -> list[Frame]:
    """What the session has to send; it is taken out."""
    frames, offset = [], 0
    while (taken := take_frame(session.outgoing, offset)) is not None:
        frame, offset = taken
        frames.append(frame)
    assert offset == len(session.outgoing)
    session.outgoing.clear()
    return frames


def answer(request: Frame, status: int = Status.SUCCESS, value: bytes = b"") -> bytes:
    return pack_response(request.opcode, status=status, opaque=request.opaque, value=value)


def cluster_config(
    *ports: int, chains: Sequence[Sequence[int]] = ((0,),) * 4, here: int = 0, rev: int = 1, uuid: str = BUCKET_UUID
) -> bytes:
    """A map of nodes on loopback at *ports*, as the node number *here* tells it."""
    config = {
        "rev": rev,
        "uuid": uuid,
        "nodesExt": [
            {"services": {"kv": port}, "hostname": "127.0.0.1", "thisNode": number == here}
            for number, port in enumerate(ports)
        ],
        "vBucketServerMap": {"serverList": [f"127.0.0.1:{port}" for port in ports], "vBucketMap": chains},
    }
    return msgspec.json.encode(config)


def handshake_answer(request: Frame, config: bytes | None = None, features: bytes = b"") -> bytes:
    """Success; *features* are what a HELLO is granted, *config* is the map."""
    values = {Op.HELLO: features, Op.GET_CLUSTER_CONFIG: config or cluster_config(11210)}
    return answer(request, value=values.get(Op(request.opcode), b""))


def shake_hands(session: Session, now: float = 0.0) -> list[Frame]:
    """Answer everything with success until the session streams; what it asked for."""
    asked: list[Frame] = []
    while not session.streaming:
        for request in sent(session):
            asked.append(request)
            session.receive(handshake_answer(request), now)
    return asked


def new_session(
    streams: Streams, options: SessionOptions = OPTIONS, on_config: Callable[[bytes], None] = lambda text: None
) -> Session:
    """A session that is about to say hello."""
    return Session(options, streams, itertools.count(1), on_config)


def open_streams(
    *vbs: int,
    log: bytes = struct.pack(">QQ", 0xABC, 0),
    options: SessionOptions = OPTIONS,
    on_config: Callable[[bytes], None] = lambda text: None,
    at: Checkpoint = ORIGIN,
) -> tuple[Session, Streams, dict[int, int]]:
    """A session that streams *vbs* from *at*; the opaque of each."""
    streams = Streams(dict.fromkeys(vbs, at))
    session = new_session(streams, options, on_config)
    shake_hands(session)
    session.tick(0.0)
    opaques = {}
    for request in sent(session):
        if request.opcode == Op.DCP_STREAM_REQ:
            session.receive(answer(request, value=log), 0.0)
            opaques[request.vbucket] = request.opaque
    session.take_events()
    return session, streams, opaques


class Replay:
    """A session past its handshake, whose stream requests are those of the recording, with the recorded opaques."""

    def __init__(self, options: SessionOptions = OPTIONS) -> None:
        self._next_opaque: int | None = None
        self._own = itertools.count(0x7000_0000)
        self.streams = Streams({})
        self.configs: list[bytes] = []
        self.session = Session(options, self.streams, self._opaques(), self.configs.append)
        shake_hands(self.session)
        self.events: list[Event] = []
        self._failover_log = b""

    def _opaques(self) -> Iterator[int]:
        while True:
            opaque, self._next_opaque = self._next_opaque, None
            yield next(self._own) if opaque is None else opaque

    def run(self, lines: Iterable[Line], chunk: int = 1 << 30, cut: int | None = None) -> None:
        """Take in the server's frames, cut into pieces of *chunk* bytes; the client's decide what is asked for.

        With *cut*, they are cut behind that byte of each frame instead.
        """
        pending = bytearray()
        cuts: list[int] = []
        for line in lines:
            if line.opcode in HANDSHAKE_OPCODES or line.opcode in (Op.DCP_OPEN, Op.DCP_CONTROL):
                continue
            if line.direction == "s2c":
                if cut is not None and cut < len(line.data):
                    cuts.append(len(pending) + cut)
                pending += line.data
                self._remember_log(line)
                continue
            self._feed_pieces(bytes(pending), chunk, cuts)
            pending.clear()
            if line.opcode == Op.DCP_STREAM_REQ:
                self._request(line.frame)
        self._feed_pieces(bytes(pending), chunk, cuts)

    def _feed_pieces(self, data: bytes, chunk: int, cuts: list[int]) -> None:
        for start, end in pairwise([0, *cuts, len(data)]):
            self.feed(data[start:end], chunk)
        cuts.clear()

    def feed(self, data: bytes, chunk: int) -> None:
        for start in range(0, len(data), chunk):
            self.session.receive(data[start : start + chunk], 0.0)
        self.events += self.session.take_events()
        self._answer_failover_log()

    def _remember_log(self, line: Line) -> None:
        if "failover_log=" in line.desc:
            self._failover_log = line.frame.value

    def _answer_failover_log(self) -> None:
        """A rollback makes our session ask for the log, which the recorded client had asked for before."""
        for frame in sent(self.session):
            if frame.opcode == Op.DCP_GET_FAILOVER_LOG:
                self.session.receive(answer(frame, value=self._failover_log), 0.0)
        self.events += self.session.take_events()

    def _request(self, frame: Frame) -> None:
        if len(frame.extras) != 48:
            return
        flags, _, start, end, vbuuid, snap_start, snap_end = struct.unpack(">IIQQQQQ", frame.extras)
        if flags & _STRICT_VBUUID:
            return  # the only way to be rolled back from 0
        earlier = self.streams._by_vb.get(frame.vbucket)
        if earlier is not None and earlier.state is State.OPEN:
            return  # a second request for an open stream: ours never asks
        if start > end or not snap_start <= start <= snap_end:
            return  # out of range: ours refuses to ask
        stream = Stream(frame.vbucket, Checkpoint(vbuuid, start, snap_start, snap_end), end)
        self.streams._by_vb[stream.vb] = stream
        self.streams._waiting[stream.vb] = stream  # also where nothing is left to ask for, which ours would not
        self._next_opaque = frame.opaque
        self.session.tick(0.0)
        self._next_opaque = None
        sent(self.session)


def counted_frames(lines: Iterable[Line]) -> int:
    """The bytes that flow control counts among the server's frames."""
    return sum(
        len(line.data)
        for line in lines
        if line.direction == "s2c" and line.data[0] == mcbp.REQUEST and line.opcode != Op.DCP_NOOP
    )
