"""Keeps the state of one connection, and runs the commands that set it up. No I/O.

Every command is a function (session, request) -> reply; `Refused` and `HangUp` are the other outcomes.
"""

from collections.abc import Callable, Iterator, Sequence

from channelindex.feeds.base import JSON
from channelindex.mcbp import Feature, Frame, Op, Status
from devbucket.accounts import HASH_BY_MECHANISM, MECHANISMS, Account, LoginStep, ScramLogin
from devbucket.bucket import Bucket
from devbucket.bucket_cluster import BucketCluster
from devbucket.items import Item
from devbucket.manifest import split_key
from devbucket.producer import Producer
from devbucket.replies import HangUp, Malformed, Refused, Reply, refusal
from devbucket.vbucket import VBucket, VBucketState

VERSION = b"6.0.5-channelindex-devbucket"

OFFERED = frozenset(
    {
        Feature.TCP_NODELAY,
        Feature.TCP_DELAY,
        Feature.MUTATION_SEQNO,
        Feature.XATTR,
        Feature.XERROR,
        Feature.SELECT_BUCKET,
        Feature.SNAPPY,
        Feature.JSON,
        Feature.DUPLEX,
        Feature.CLUSTERMAP_NOTIFICATION,
        Feature.UNORDERED_EXECUTION,
        Feature.ALT_REQUEST,
        Feature.SYNC_REPLICATION,
        Feature.PRESERVE_TTL,
    }
)
"""No tracing: a client that is granted it changes what it sends."""

MAX_KEY_BYTES = 250

ERROR_MAP = b'{"version":1,"revision":1,"errors":{}}'

Command = Callable[["ClientSession", Frame], Reply | Sequence[Reply] | None]


class NodeContext:
    """The state that all connections of a node share: the cluster, the node's number, the names of DCP connections."""

    def __init__(self, cluster: BucketCluster, number: int = 0) -> None:
        self.cluster = cluster
        self.number = number
        self._dcp_session_by_name: dict[str, ClientSession] = {}

    def owns(self, vb: int) -> bool:
        """Return whether the vbucket is on this node, in whatever state."""
        owners = self.cluster.placement.owner_by_vb
        return vb < len(owners) and owners[vb] == self.number

    def has_replica(self, vb: int) -> bool:
        """Return whether a replica of the vbucket is on this node."""
        placement = self.cluster.placement
        return vb < len(placement.owner_by_vb) and self.number in placement.replicas_of(vb)

    def take_over(self, name: str, session: "ClientSession") -> None:
        """Give the DCP name *name* to *session*; a connection that has it is hung up on."""
        assert session.dcp_open, "it has a name since DCP_OPEN"
        older = self._dcp_session_by_name.get(name)
        self._dcp_session_by_name[name] = session
        if older is not None:
            older.hang_up()

    def forget(self, session: "ClientSession") -> None:
        """Free the name of a connection that is gone."""
        for name in [name for name, holder in self._dcp_session_by_name.items() if holder is session]:
            del self._dcp_session_by_name[name]


class ClientSession:
    """One connection's negotiated features, user, selected bucket and DCP producer."""

    def __init__(self, node: NodeContext, hang_up: Callable[[], None]) -> None:
        self.node = node
        self.hang_up = hang_up
        self.dcp_open = False
        self.features: frozenset[int] = frozenset()
        self.account: Account | None = None
        self.selected: Bucket | None = None
        self.login: ScramLogin | None = None
        self.producer: Producer | None = None

    @property
    def bucket(self) -> Bucket:
        """Return the bucket, for commands that need one to be selected."""
        assert self.selected is not None
        return self.selected

    def map_json(self) -> bytes:
        """Return the bucket's map as of now."""
        return self.bucket.config_json(self.node.number)

    @property
    def vbuckets(self) -> Iterator[VBucket]:
        """Return the vbuckets on this node."""
        return (vbucket for vbucket in self.bucket.vbuckets if self.node.owns(vbucket.vb))

    @property
    def knows_collections(self) -> bool:
        """Return whether keys on this connection begin with the number of their collection."""
        return Feature.COLLECTIONS in self.features

    @property
    def json_datatype(self) -> int:
        """Return the datatype of JSON text in a response: the bit only if the client negotiated it."""
        return JSON if Feature.JSON in self.features else 0

    def inner_key(self, key: bytes) -> bytes:
        """Return how the bucket keeps a key of this client.

        Raises:
            Malformed: it is too long, or has no number of a collection.
            Refused: there is no such collection.
        """
        manifest = self.bucket.manifest
        if manifest is None or not self.knows_collections:
            plain, inner = key, self.bucket.key_in_default(key)
        else:
            number, plain = split_key(key)
            inner = key
            if not manifest.knows(number):
                raise Refused(Status.UNKNOWN_COLLECTION, manifest.unknown_context(), self.json_datatype)
        if not 1 <= len(plain) <= MAX_KEY_BYTES:
            raise Malformed
        return inner

    def refusal(self, status: int, context: str = "", *, with_ref: bool = False) -> Refused:
        """Return a refusal with an explanation, as this client can read it."""
        return refusal(status, context, as_json=bool(self.json_datatype), with_ref=with_ref)

    def denied(self, context: str) -> Exception:
        """Return the outcome of a missing privilege; the connection of a client without XERROR is closed."""
        if Feature.XERROR not in self.features:
            return HangUp(context)
        return self.refusal(Status.EACCESS, context, with_ref=True)

    def require_bucket(self, request: Frame) -> None:
        """Let only a client pass that logged in and selected the bucket."""
        if self.account is None:
            raise self.denied(f"An exception occurred. command: [{_name_of(request.opcode)}]")
        if self.selected is None:
            raise Refused(Status.NO_BUCKET)

    def find_vbucket(self, vb: int, *, states: frozenset[VBucketState]) -> VBucket:
        """Return the vbucket *vb* if it is on this node in one of these states; else the client is sent the map."""
        if self.node.owns(vb) and self.bucket.vbuckets[vb].state in states:
            return self.bucket.vbuckets[vb]
        raise Refused(Status.NOT_MY_VBUCKET, self.map_json())

    def mutated(self, vbucket: VBucket, item: Item, value: bytes = b"", status: int = Status.SUCCESS) -> Reply:
        """Return the reply to a change, with the mutation token if the client negotiated it."""
        assert item.vb == vbucket.vb
        extras = b""
        if Feature.MUTATION_SEQNO in self.features:
            extras = vbucket.failover_log.vbuuid.to_bytes(8, "big") + item.seqno.to_bytes(8, "big")
        self.bucket.note_expiry(vbucket.vb, item.key, item.expiry)
        return Reply(value, extras, cas=item.cas, status=status)


def hello(session: ClientSession, request: Frame) -> Reply:
    """Negotiate features; what we do not know is left out. A second HELLO replaces the first."""
    if len(request.value) % 2:
        raise Malformed
    asked = {int.from_bytes(request.value[at : at + 2], "big") for at in range(0, len(request.value), 2)}
    if {Feature.TCP_NODELAY, Feature.TCP_DELAY} <= asked:
        raise session.refusal(Status.EINVAL, "TCPNODELAY cannot co-exist with TCPDELAY")
    if Feature.CLUSTERMAP_NOTIFICATION in asked and Feature.DUPLEX not in asked:
        raise session.refusal(Status.EINVAL, "ClustermapChangeNotification needs Duplex")
    bucket = session.node.cluster.bucket
    offered = OFFERED if bucket is None or bucket.manifest is None else OFFERED | {Feature.COLLECTIONS}
    if session.node.cluster.without_sync_writes:
        offered -= {Feature.SYNC_REPLICATION, Feature.ALT_REQUEST}
    session.features = offered & asked
    return Reply(b"".join(feature.to_bytes(2, "big") for feature in sorted(session.features)))


def sasl_list_mechs(_session: ClientSession, _request: Frame) -> Reply:
    """Return the login mechanisms, strongest first."""
    return Reply(MECHANISMS)


def sasl_auth(session: ClientSession, request: Frame) -> Reply:
    """Log in with PLAIN, or begin a SCRAM exchange."""
    session.login = None
    if request.key == b"PLAIN":
        return _login_reply(session, session.node.cluster.accounts.plain(request.value))
    if request.key not in HASH_BY_MECHANISM:
        return _login_reply(session, None)
    session.login = ScramLogin(session.node.cluster.accounts, request.key)
    return _login_reply(session, session.login.first(request.value))


def sasl_step(session: ClientSession, request: Frame) -> Reply:
    """End a SCRAM exchange. Only here does a wrong password show."""
    login, session.login = session.login, None
    return _login_reply(session, login.final(request.value) if login is not None else None)


def _login_reply(session: ClientSession, step: LoginStep | None) -> Reply:
    if session.node.cluster.logins_refused:
        step = None
    session.account = step.account if step is not None else None
    if step is None:
        raise session.refusal(Status.AUTH_ERROR, with_ref=True)
    return Reply(step.text, status=Status.SUCCESS if step.account else Status.AUTH_CONTINUE)


def select_bucket(session: ClientSession, request: Frame) -> Reply:
    """Choose the bucket. An account without rights learns nothing of its existence."""
    name = request.key.decode(errors="replace")
    if session.account is None or not session.account.may_use(name):
        raise Refused(Status.EACCESS)
    bucket = session.node.cluster.to_select()
    if bucket is None or name != bucket.name:
        raise Refused(Status.KEY_ENOENT)
    session.selected = bucket
    return Reply()


def list_buckets(session: ClientSession, _request: Frame) -> Reply:
    """Return the names of the buckets that the user may use, separated by blanks."""
    if session.account is None:
        raise Refused(Status.EACCESS)
    bucket = session.node.cluster.to_select()
    return Reply(bucket.name.encode() if bucket is not None and session.account.may_use(bucket.name) else b"")


def get_cluster_config(session: ClientSession, _request: Frame) -> Reply:
    """Return the map of the selected bucket, or without one the nodes.

    A server that no cluster manager runs refuses the latter, and so do we, except where there is TLS: the official SDK
    then finds the port of a bucket in no other way.
    """
    if session.selected is not None:
        return Reply(session.map_json(), datatype=session.json_datatype)
    placement = session.node.cluster.placement
    if session.account is None or not placement.members[session.node.number].tls_port:
        raise session.refusal(Status.NO_BUCKET, "No bucket selected")
    return Reply(placement.global_json(session.node.number), datatype=session.json_datatype)


def get_error_map(session: ClientSession, _request: Frame) -> Reply:
    """Return an error map without entries: all our statuses are in the protocol's own list."""
    return Reply(ERROR_MAP, datatype=session.json_datatype)


def acknowledge(_session: ClientSession, _request: Frame) -> Reply:
    """Nothing but a reply."""
    return Reply()


def version(_session: ClientSession, _request: Frame) -> Reply:
    """Return the version of a server that can what we can."""
    return Reply(VERSION)


def _name_of(opcode: int) -> str:
    return Op(opcode).name if opcode in Op.__members__.values() else f"0x{opcode:02x}"


COMMANDS: dict[int, Command] = {
    Op.HELLO: hello,
    Op.SASL_LIST_MECHS: sasl_list_mechs,
    Op.SASL_AUTH: sasl_auth,
    Op.SASL_STEP: sasl_step,
    Op.SELECT_BUCKET: select_bucket,
    Op.LIST_BUCKETS: list_buckets,
    Op.GET_CLUSTER_CONFIG: get_cluster_config,
    Op.GET_ERROR_MAP: get_error_map,
    Op.NOOP: acknowledge,
    Op.QUIT: acknowledge,
    Op.VERSION: version,
}
"""Commands that a client may send before it has selected a bucket."""
