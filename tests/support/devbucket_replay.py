"""Replays recordings of a real server against the dev bucket and compares what both say.

`ALLOWED` names every way in which the answers may differ, and why. All else must be equal: the frames' opcodes,
statuses, datatypes, opaques, extras, keys and values, their order per vbucket, and where connections are closed.
"""

import gzip
import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cramjam

from channelindex import mcbp
from channelindex.feeds.base import SNAPPY
from channelindex.feeds.dcp.scram import ScramClient
from channelindex.mcbp import Feature, Frame, Op
from devbucket import DevBucket, DevBucketConfig
from devbucket.accounts import Account
from devbucket.bucket_config import IDLE_TIMEOUT_S
from tests.support.mcbp_client import RawClient, Writer

ALLOWED = {
    "cas": "a clock's value; only whether there is one is compared",
    "vbuuid": "random; mapped, so that equal ones stay equal and the order of the log is compared",
    "nonce": "random texts of SCRAM, references in error contexts",
    "time": "the delete time of a tombstone",
    "map": "the bucket's map names other ports and capabilities; compared is that it is one, of as many vbuckets",
    "features": "HELLO: no tracing here, and some that the recorded server was too old for, see `client_session`",
    "control": "enable_expiry_opcode (6.5) and max_marker_version (7.6) are known here, the recorded server was 6.0",
    "rev": "the rev of a new document after deletions depends on what the real server's flusher had done by then",
    "compression": "two compressors may make different bytes of one value; compared is what they stand for",
    "purge": "tombstones that a purge had not removed from a real server's memory are gone here at once",
    "snapshot": "how a backfill is split into a disk and a memory snapshot depends on the flusher too",
}

NEWER_CONTROLS = frozenset({b"enable_expiry_opcode", b"max_marker_version"})
NOT_OFFERED = {0x09, 0x0F}
NEWER = {Feature.ALT_REQUEST, Feature.SYNC_REPLICATION, Feature.COLLECTIONS, Feature.PRESERVE_TTL}
FLEXIBLE_RESPONSE = 0x18  # a response with tracing information
STREAM_MESSAGES = frozenset(
    {Op.DCP_SNAPSHOT_MARKER, Op.DCP_MUTATION, Op.DCP_DELETION, Op.DCP_EXPIRATION, Op.DCP_STREAM_END}
)
ACCOUNTS = (
    Account("reader", "readerpw", frozenset({"default"})),
    Account("nodcp", "nodcppw", frozenset({"default"}), may_stream=False),
)


class Line(NamedTuple):
    """One line of a recording. `text` is its description or note, which steps are tied to."""

    direction: str
    conn: str
    frame: Frame | None
    raw: bytes
    text: str


def read_recording(path: Path) -> list[Line]:
    """All lines of a recording."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt") as file:
        return [_line(json.loads(text)) for text in file]


def _line(record: dict[str, Any]) -> Line:
    raw = bytes.fromhex(record["hex"])
    frame = _frame(raw) if raw and record["dir"] == "s2c" else None
    return Line(record["dir"], record["conn"], frame, raw, record.get("desc") or record["note"])


def _frame(raw: bytes) -> Frame:
    if raw[0] == FLEXIBLE_RESPONSE:
        raw = _plain_response(raw)
    taken = mcbp.take_frame(raw)
    assert taken is not None
    return taken[0]


def _plain_response(raw: bytes) -> bytes:
    """A response without its tracing information, which stands behind the header and has its length in byte 2."""
    body = raw[24 + raw[2] :]
    return bytes([mcbp.RESPONSE, raw[1], 0, raw[3]]) + raw[4:8] + len(body).to_bytes(4, "big") + raw[12:24] + body


Step = Callable[["Replay"], None]


class Replay:
    """One recording against one dev bucket.

    *steps*: (text, step): the operator's doings. A step runs once, before the first line that holds its text, which may
    begin with the connection's name and a colon, and that comes after the previous step's line.
    """

    def __init__(
        self,
        path: Path,
        n_vbuckets: int = 4,
        load: Callable[[Any], None] | None = None,
        steps: tuple[tuple[str, Step], ...] = (),
        ignore: Callable[[Line], bool] = lambda _line: False,
        *,
        compare_rev: bool = True,
        compare_markers: bool = True,
        file: Path | None = None,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
        bucket: str = "default",
        has_logins: bool = True,
    ) -> None:
        self._lines = [line for line in read_recording(path) if not ignore(line)]
        self._config = DevBucketConfig(
            n_vbuckets=n_vbuckets, more_accounts=ACCOUNTS, file=file, idle_timeout_s=idle_timeout_s, bucket=bucket
        )
        self._has_logins = has_logins
        self._controls: dict[tuple[str, int], bytes] = {}  # the keys, by connection and opaque
        self._steps = list(steps)
        self._compare_rev = compare_rev
        self._compare_markers = compare_markers
        self._clients: dict[str, RawClient] = {}
        self._waiting: dict[str, list[Frame]] = {}
        self._vbuuids: dict[int, int] = {}  # recorded -> ours
        self._scram: dict[str, ScramClient] = {}
        self._server_firsts: dict[str, bytes] = {}
        self._load = load

    def run(self) -> None:
        """Replay all lines; raises AssertionError at the first difference."""
        self.bucket = DevBucket(self._config, self._load)
        self.bucket.__enter__()
        try:
            for number, line in enumerate(self._lines):
                self._run_steps(line)
                try:
                    self._run_line(line)
                except (AssertionError, TimeoutError) as error:
                    raise AssertionError(
                        f"line {number}: {line.direction} {line.conn} {line.text[:200]}: {error}"
                    ) from error
            self._expect_nothing_more()
            assert not self._steps, f"step was never reached: {self._steps[0][0]}"
        finally:
            for client in self._clients.values():
                client.close()
            self.bucket.close()

    def replace_bucket(self) -> None:
        """Delete the bucket and make it anew: a new server, empty, with other vbuuids."""
        self.restart()

    def restart(self) -> None:
        """End the server cleanly and start it again: what it has is in its file, if there is one."""
        self.bucket.close()
        self.bucket = DevBucket(self._config)
        self.bucket.__enter__()

    def kill(self) -> None:
        """End the server as kill -9 does and start it again."""
        self.bucket.kill()
        self.restart()
        self.forget_writer()

    def writer(self) -> Writer:
        """A connection that writes documents."""
        client = self._clients.get("(writer)")
        if client is None:
            client = self._clients["(writer)"] = RawClient(self.bucket.port).log_in()
        return Writer(client.call)

    def burst(self, *requests: bytes) -> None:
        """Send several writes in one go, so that the server sees them together."""
        self.writer()
        self._clients["(writer)"].send(b"".join(requests))
        for _ in requests:
            assert self._clients["(writer)"].read() is not None

    def forget_writer(self) -> None:
        """The writer's connection was cut with the others."""
        self._clients.pop("(writer)").close()

    def _run_steps(self, line: Line) -> None:
        if self._steps and self._steps[0][0] in f"{line.conn}: {line.text}":
            _, step = self._steps.pop(0)
            step(self)

    def _run_line(self, line: Line) -> None:
        if line.direction == "c2s":
            self._before_sending(line)
            self._client(line.conn).send(self._to_send(line))
        elif line.frame is not None:
            self._compare(line.frame, self._next_like(line.conn, line.frame), line.conn)
        elif "server closed" in line.text or "reset by server" in line.text:
            client = self._client(line.conn)
            while (frame := client.read()) is not None:
                self._waiting.setdefault(line.conn, []).append(frame)

    def _client(self, conn: str) -> RawClient:
        if conn not in self._clients:
            self._clients[conn] = RawClient(self.bucket.port)
        return self._clients[conn]

    def _before_sending(self, line: Line) -> None:
        request = _frame(line.raw) if len(line.raw) >= mcbp.HEADER_BYTES and line.raw[1] == Op.DCP_CONTROL else None
        if request is not None:
            self._controls[line.conn, request.opaque] = request.key
        if not self._has_logins and line.raw[1] == Op.SELECT_BUCKET:
            login = b"\0" + self._config.user.encode() + b"\0" + self._config.password.encode()
            assert self._client(line.conn).call(Op.SASL_AUTH, key=b"PLAIN", value=login).status == 0

    def _to_send(self, line: Line) -> bytes:
        """The recorded request with our vbuuid, our SCRAM messages."""
        opcode = line.raw[1]
        if opcode == Op.DCP_STREAM_REQ and len(line.raw) >= 72:
            recorded = int.from_bytes(line.raw[48:56], "big")
            return line.raw[:48] + self._vbuuids.get(recorded, recorded).to_bytes(8, "big") + line.raw[56:]
        if opcode in (Op.SASL_AUTH, Op.SASL_STEP) and line.raw[24:].startswith(b"SCRAM"):
            return self._scram_request(line)
        return line.raw

    def _scram_request(self, line: Line) -> bytes:
        taken = mcbp.take_frame(line.raw)
        assert taken is not None
        request = taken[0]
        if request.opcode == Op.SASL_AUTH:
            user = re.search(rb"n=([^,]*)", request.value)
            assert user is not None
            wrong = "wrong" if "bad" in line.conn else "password"
            hash_name = request.key.decode().removeprefix("SCRAM-").lower()
            self._scram[line.conn] = ScramClient(hash_name, user[1].decode(), wrong)
            value = self._scram[line.conn].first()
        else:
            value = self._scram[line.conn].final(self._server_firsts[line.conn])
        return mcbp.pack_request(request.opcode, opaque=request.opaque, key=request.key, value=value)

    def _next_like(self, conn: str, expected: Frame) -> Frame:
        """The next frame of the same kind: vbuckets may interleave in another way, and with responses."""
        kind = _kind(expected)
        waiting = self._waiting.setdefault(conn, [])
        for at, seen in enumerate(waiting):
            if _kind(seen) == kind:
                return waiting.pop(at)
        while (frame := self._client(conn).read()) is not None:
            if _kind(frame) == kind:
                return frame
            waiting.append(frame)
        raise AssertionError(f"the connection was closed, {expected} was expected")

    def _expect_nothing_more(self) -> None:
        for conn, client in self._clients.items():
            waiting = self._waiting.get(conn, [])
            client.send(mcbp.pack_request(Op.NOOP))
            while (frame := client.read()) is not None and frame.opcode != Op.NOOP:
                waiting.append(frame)
            surplus = [frame for frame in waiting if frame.opcode != Op.DCP_NOOP]
            assert not surplus, f"{conn}: frames that the real server did not send: {surplus}"

    def _compare(self, expected: Frame, actual: Frame, conn: str) -> None:
        for name in ("magic", "opcode", "status", "opaque", "key"):
            if name == "status" and self._controls.get((conn, expected.opaque)) in NEWER_CONTROLS:
                continue
            assert getattr(expected, name) == getattr(actual, name), f"{name}: {expected} became {actual}"
        assert bool(expected.cas) == bool(actual.cas), f"cas: {expected} became {actual}"
        if expected.opcode in (Op.SASL_AUTH, Op.SASL_STEP):
            self._compare_sasl(expected, actual, conn)
        elif expected.opcode == Op.HELLO:
            self._compare_features(expected, actual)
        elif expected.opcode in (Op.DCP_STREAM_REQ, Op.DCP_GET_FAILOVER_LOG) and expected.status == 0:
            self._compare_logs(expected.value, actual.value)
        elif expected.value.startswith((b'{"rev"', b'{"error"')):
            _compare_json(expected, actual)
        else:
            assert expected.datatype == actual.datatype, f"datatype: {expected} became {actual}"
            expected, actual = _decompressed(expected), _decompressed(actual)
            assert self._comparable(expected) == self._comparable(actual), f"{expected} became {actual}"

    def _compare_features(self, expected: Frame, actual: Frame) -> None:
        if expected.status:
            _compare_json(expected, actual)
        else:
            assert _features(actual) - NEWER == _features(expected) - NOT_OFFERED

    def _compare_sasl(self, expected: Frame, actual: Frame, conn: str) -> None:
        assert bool(expected.value) == bool(actual.value)
        if expected.value.startswith(b"r="):
            self._server_firsts[conn] = actual.value
        elif expected.value.startswith(b"v="):
            self._scram[conn].verify(actual.value)
        elif expected.value:
            _compare_json(expected, actual)

    def _compare_logs(self, expected: bytes, actual: bytes) -> None:
        theirs = list(struct.iter_unpack(">QQ", expected))
        ours = list(struct.iter_unpack(">QQ", actual))
        assert [seqno for _, seqno in theirs] == [seqno for _, seqno in ours], f"failover log {theirs} became {ours}"
        for (recorded, _), (vbuuid, _) in zip(theirs, ours, strict=True):
            assert self._vbuuids.setdefault(recorded, vbuuid) == vbuuid, "a vbuuid changed without a new history"

    def _comparable(self, frame: Frame) -> tuple[Any, ...]:
        """Extras and value without what ALLOWED lets differ."""
        if frame.opcode == Op.DCP_MUTATION:
            seqno, rev, *rest = struct.unpack(">QQIIIHB", frame.extras)
            return seqno, rev if self._compare_rev else 0, rest, _without_macros(frame.value)
        if frame.opcode == Op.DCP_DELETION:
            seqno, rev = struct.unpack_from(">QQ", frame.extras)
            return len(frame.extras), seqno, rev if self._compare_rev else 0, frame.value
        if frame.opcode == Op.DCP_SNAPSHOT_MARKER and not self._compare_markers:
            return ()
        if frame.magic == mcbp.SERVER_REQUEST:
            return (len(frame.extras),)
        return frame.extras, frame.value


def _kind(frame: Frame) -> tuple[Any, ...]:
    if frame.magic == mcbp.REQUEST and frame.opcode in STREAM_MESSAGES:
        return ("stream", frame.vbucket)
    return (frame.magic, frame.opcode) if frame.magic != mcbp.RESPONSE else (frame.magic,)


def _features(hello: Frame) -> set[int]:
    return {feature for (feature,) in struct.iter_unpack(">H", hello.value)}


def _decompressed(frame: Frame) -> Frame:
    """ALLOWED["compression"]. What is not compressed, whatever its datatype says, is compared as it is."""
    if frame.magic != mcbp.REQUEST or not frame.datatype & SNAPPY:
        return frame
    try:
        return frame._replace(value=bytes(cramjam.snappy.decompress_raw(frame.value)))
    except cramjam.DecompressionError:
        return frame


def _without_macros(value: bytes) -> bytes:
    """ALLOWED["cas"]: a CAS that was written into an xattr."""
    return re.sub(rb'"cas":"0x[0-9a-f]{16}"', b'"cas":"0x"', value)


def _compare_json(expected: Frame, actual: Frame) -> None:
    theirs, ours = json.loads(expected.value), json.loads(actual.value)
    assert expected.datatype == actual.datatype
    if "error" in theirs:
        assert theirs["error"].keys() == ours["error"].keys()
        assert theirs["error"].get("context") == ours["error"].get("context")
    else:
        assert ours["nodeLocator"] == "vbucket"
        assert len(theirs["vBucketServerMap"]["vBucketMap"]) == len(ours["vBucketServerMap"]["vBucketMap"])
