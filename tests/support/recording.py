"""Reads the recordings of a real server: which frames went over each connection, and what a person says of them."""

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from channelindex.feeds.base import ADVANCED, DELETION, HISTORY, MUTATION, SNAPSHOT, Event
from channelindex.mcbp import Frame, take_frame

_FLEXIBLE_RESPONSE = 0x18  # only where the recorded client asked for tracing, which ours does not


class Line(NamedTuple):
    """One line of a recording: a frame, or an event (`data` empty) with its note."""

    conn: str
    direction: str
    data: bytes
    desc: str
    note: str

    @property
    def frame(self) -> Frame:
        taken = take_frame(self.data)
        assert taken is not None
        return taken[0]

    @property
    def opcode(self) -> int:
        return self.data[1] if self.data else -1


def read_recording(path: Path) -> Iterator[Line]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        for text in lines:
            row = json.loads(text)
            data = _plain(bytes.fromhex(row["hex"]))
            yield Line(row["conn"], row["dir"], data, row.get("desc") or "", row.get("note") or "")


def by_connection(path: Path) -> dict[str, list[Line]]:
    """The frames of each connection, in order."""
    connections: dict[str, list[Line]] = {}
    for line in read_recording(path):
        if line.data:
            connections.setdefault(line.conn, []).append(line)
    return connections


def _plain(data: bytes) -> bytes:
    """A response with framing extras as it would be without them."""
    if not data or data[0] != _FLEXIBLE_RESPONSE:
        return data
    framing, key = data[2], data[3]
    body = int.from_bytes(data[8:12], "big") - framing
    head = bytes((0x81, data[1])) + key.to_bytes(2, "big") + data[4:8] + body.to_bytes(4, "big") + data[12:24]
    return head + data[24 + framing :]


def described_event(line: Line) -> tuple[int, ...] | Event | None:
    """The event that a line means by its description: documents as (kind, vb, seqno), others whole."""
    desc = line.desc
    if match := re.match(r"REQ DCP_(MUTATION|DELETION) opaque=\S+ vb=(\d+) seqno=(\d+)", desc):
        return MUTATION if match[1] == "MUTATION" else DELETION, int(match[2]), int(match[3])
    if match := re.match(r"REQ DCP_SNAPSHOT_MARKER opaque=\S+ vb=(\d+) snap=\[(\d+),(\d+)\]", desc):
        return SNAPSHOT, int(match[1]), int(match[2]), int(match[3])
    if desc.startswith("RES DCP_STREAM_REQ") and "(SUCCESS)" in desc:
        log = re.findall(r"\(uuid=(0x[0-9a-f]+) seq=(\d+)\)", desc)
        return HISTORY, line.frame.opaque & 0xFFFF, tuple((int(uuid, 16), int(seq)) for uuid, seq in log)
    return None


def outline(event: Event) -> Event:
    """An event as `described_event` gives it."""
    return event[:3] if event[0] < ADVANCED else event
