"""What is said on a new connection before the first document: who we are, which bucket, and how to stream it."""

import struct
from typing import NamedTuple

import msgspec

from channelindex import __version__
from channelindex.errors import AuthenticationFailed, ConfigInvalid, ProtocolError, SourceUnavailable
from channelindex.feeds.base import SourceInfo
from channelindex.feeds.dcp.auth import Credentials, authenticate
from channelindex.feeds.dcp.exchange import Conversation, Request, complaint, refusal
from channelindex.mcbp import Feature, Frame, Op, Status

_FEATURES = (Feature.XATTR, Feature.XERROR, Feature.SELECT_BUCKET, Feature.JSON)
"""Without XERROR a missing privilege closes the connection without a word. Snappy is not asked for: a compressed
value hides its xattrs, and costs us the decompression."""

_PRODUCER = 0x01
_INCLUDE_XATTRS = 0x04


class ProducerOptions(NamedTuple):
    """How the server shall stream. *buffer_bytes* bounds what it sends unacknowledged."""

    name: str
    buffer_bytes: int
    noop_interval_s: int


class _ServerMap(msgspec.Struct, rename="camel"):
    v_bucket_map: list[list[int]]


class _ClusterConfig(msgspec.Struct, rename="camel"):
    uuid: str
    v_bucket_server_map: _ServerMap


def open_bucket(bucket: str, credentials: Credentials) -> Conversation[SourceInfo]:
    """Authenticate and select *bucket*; what it says of itself.

    Raises:
        AuthenticationFailed: the credentials are wrong, or not for this bucket.
        SourceUnavailable: the bucket is not there, or not yet: a node that starts answers before it has its buckets.
        ProtocolError: the answers make no sense.
    """
    agent = msgspec.json.encode({"a": f"channelindex/{__version__}"})
    hello = yield Request(Op.HELLO, key=agent, value=struct.pack(f">{len(_FEATURES)}H", *_FEATURES))
    if hello.status != Status.SUCCESS:
        raise refusal(hello)
    if credentials.user:
        yield from authenticate(credentials)
    _check_selected((yield Request(Op.SELECT_BUCKET, key=bucket.encode())), bucket, credentials)
    return _source_info((yield Request(Op.GET_CLUSTER_CONFIG)))


def _check_selected(selected: Frame, bucket: str, credentials: Credentials) -> None:
    if selected.status == Status.KEY_ENOENT:
        raise SourceUnavailable(f"the bucket {bucket!r} of source.url does not exist, or is not loaded yet")
    if selected.status == Status.EACCESS:
        raise AuthenticationFailed(
            f"source.user = {credentials.user!r} may not use the bucket {bucket!r} of source.url: {complaint(selected)}"
        )
    if selected.status != Status.SUCCESS:
        raise refusal(selected)


def _source_info(answer: Frame) -> SourceInfo:
    if answer.status == Status.KEY_ENOENT:
        raise SourceUnavailable("the node has no cluster configuration yet")
    if answer.status != Status.SUCCESS:
        raise refusal(answer)
    try:
        config = msgspec.json.decode(answer.value, type=_ClusterConfig)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"the cluster configuration cannot be read: {error}") from error
    n_vbuckets = len(config.v_bucket_server_map.v_bucket_map)
    if n_vbuckets == 0:
        raise SourceUnavailable("the cluster configuration has no vbuckets yet")
    return SourceInfo(config.uuid, n_vbuckets)


def open_producer(options: ProducerOptions) -> Conversation[None]:
    """Make the connection a DCP producer with xattrs, noops and flow control.

    Noops come first: a stream with xattrs is refused on a connection without them.

    Raises:
        AuthenticationFailed: the user lacks the privilege to stream.
        ConfigInvalid: the server cannot stream as we need it.
    """
    flags = struct.pack(">II", 0, _PRODUCER | _INCLUDE_XATTRS)
    opened = yield Request(Op.DCP_OPEN, key=options.name.encode(), extras=flags)
    if opened.status != Status.SUCCESS:
        raise refusal(opened)
    for name, value, optional in (
        ("enable_noop", "true", False),
        ("connection_buffer_size", str(options.buffer_bytes), False),
        ("set_noop_interval", str(options.noop_interval_s), True),
        ("enable_expiry_opcode", "true", True),
    ):
        answer = yield Request(Op.DCP_CONTROL, key=name.encode(), value=value.encode())
        if answer.status != Status.SUCCESS and not optional:
            raise ConfigInvalid(f"the server of source.url does not take {name} = {value}: {complaint(answer)}")
