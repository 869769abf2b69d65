"""Runs the handshake of a new connection: features, login, bucket, options of the stream."""

import struct
from collections.abc import Collection
from typing import NamedTuple

import msgspec

from channelindex import __version__
from channelindex.errors import AuthenticationFailed, ConfigInvalid, SourceUnavailable
from channelindex.feeds.dcp.auth import Credentials, authenticate
from channelindex.feeds.dcp.connstr import SourceAddress
from channelindex.feeds.dcp.exchange import Conversation, Request, error_text, refusal
from channelindex.feeds.dcp.messages import BodiesNeeded
from channelindex.mcbp import Feature, Frame, Op, Status

COMMON_FEATURES = (Feature.XATTR, Feature.XERROR, Feature.SELECT_BUCKET, Feature.JSON)
"""Without XERROR a missing privilege closes the connection without a word."""
FEED_FEATURES = (*COMMON_FEATURES, Feature.COLLECTIONS, Feature.DUPLEX, Feature.CLUSTERMAP_NOTIFICATION)

_PRODUCER = 0x01
_INCLUDE_XATTRS = 0x04
_INCLUDE_DELETE_TIMES = 0x20
"""Without it `enable_expiry_opcode` is accepted and does nothing (KV producer.cc, 6.5 to master)."""
_NO_VALUE_BUT_DATATYPE = 0x40
"""Leave the body out and let the datatype still say what it was."""


_MARKER_VERSION = "max_marker_version"
"""Snapshot markers that say up to where tombstones were purged: 8.0 and later, with collections."""


class ProducerOptions(NamedTuple):
    """Options that the server streams by. *buffer_bytes* bounds what it sends unacknowledged."""

    name: str
    buffer_bytes: int
    noop_interval_s: int
    bodies: bool = True
    snappy: bool = False


class Greeting(NamedTuple):
    """A node's answers: the features that it granted, and the cluster's configuration."""

    features: frozenset[int]
    config: bytes


def open_bucket(address: SourceAddress, credentials: Credentials, features: Collection[int]) -> Conversation[Greeting]:
    """Authenticate and select the bucket, asking for *features*.

    Raises:
        AuthenticationFailed: the credentials are wrong, or not for this bucket.
        SourceUnavailable: the bucket is not there, or not yet: a node that starts answers before it has its buckets.
        ProtocolError: the answers make no sense.
    """
    agent = msgspec.json.encode({"a": f"channelindex/{__version__}"})
    hello = yield Request(Op.HELLO, key=agent, value=struct.pack(f">{len(features)}H", *features))
    if hello.status != Status.SUCCESS:
        raise refusal(hello)
    granted = struct.unpack(f">{len(hello.value) // 2}H", hello.value[: len(hello.value) // 2 * 2])
    if credentials.user:
        yield from authenticate(credentials, encrypted=address.tls is not None)
    _check_selected((yield Request(Op.SELECT_BUCKET, key=address.bucket.encode())), address.bucket, credentials)
    answer = yield Request(Op.GET_CLUSTER_CONFIG)
    if answer.status == Status.KEY_ENOENT:
        raise SourceUnavailable("the node has no cluster configuration yet")
    if answer.status != Status.SUCCESS:
        raise refusal(answer)
    return Greeting(frozenset(granted) & frozenset(features), answer.value)


def _check_selected(selected: Frame, bucket: str, credentials: Credentials) -> None:
    if selected.status == Status.KEY_ENOENT:
        raise SourceUnavailable(f"the bucket {bucket!r} of source.url does not exist, or is not loaded yet")
    if selected.status == Status.EACCESS:
        raise AuthenticationFailed(
            f"source.user = {credentials.user!r} may not use the bucket {bucket!r} of source.url: "
            f"{error_text(selected)}"
        )
    if selected.status != Status.SUCCESS:
        raise refusal(selected)


def open_producer(options: ProducerOptions) -> Conversation[bool]:
    """Make the connection a DCP producer with xattrs, noops and flow control; whether it reports purge seqnos.

    Noops come first: a stream with xattrs is refused on a connection without them.

    Raises:
        AuthenticationFailed: the user lacks the privilege to stream.
        BodiesNeeded: the server knows no streams without bodies.
        ConfigInvalid: the server cannot stream as we need it.
    """
    assert options.buffer_bytes > 0, "0 would mean no flow control"
    flags = _PRODUCER | _INCLUDE_XATTRS | _INCLUDE_DELETE_TIMES | (0 if options.bodies else _NO_VALUE_BUT_DATATYPE)
    opened = yield Request(Op.DCP_OPEN, key=options.name.encode(), extras=struct.pack(">II", 0, flags))
    if opened.status == Status.EINVAL and not options.bodies:
        raise BodiesNeeded(f"the server of source.url cannot leave the bodies out: {error_text(opened)}")
    if opened.status != Status.SUCCESS:
        raise refusal(opened)
    has_purge_seqnos = False
    for name, value, optional in (
        ("enable_noop", "true", False),
        ("connection_buffer_size", str(options.buffer_bytes), False),
        ("set_noop_interval", str(options.noop_interval_s), True),
        ("enable_expiry_opcode", "true", True),
        (_MARKER_VERSION, "2.2", True),
    ):
        answer = yield Request(Op.DCP_CONTROL, key=name.encode(), value=value.encode())
        if answer.status != Status.SUCCESS and not optional:
            raise ConfigInvalid(f"the server of source.url does not take {name} = {value}: {error_text(answer)}")
        has_purge_seqnos = name == _MARKER_VERSION and answer.status == Status.SUCCESS
    return has_purge_seqnos
