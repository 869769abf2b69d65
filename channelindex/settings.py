"""The model of the configuration: every key with its type, default, bounds and one line of explanation.

Validation, `config show`, `config check` and docs/configuration.md are made from the fields of these dataclasses.
`channelindex.config` loads them.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from channelindex.redis_url import FORMS, parse_redis_url

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ENVIRONMENT_PREFIX = "CHANNELINDEX_"
MEMORY_URL = "memory://"
"""The store that is a node's own memory."""
DEFAULT_ORIGIN = "default"
CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""No name, path, address or password has these: controls, and bytes of the environment that are not UTF-8."""

Value = str | int | float | bool


@dataclass(frozen=True)
class Setting:
    """One key of the configuration, with its type, bounds and documentation.

    `default` also fixes the type. `default_text` replaces it in print where the real default is only known at run time.
    `rule` returns a message for a value that breaks it, else None.
    """

    key: str
    default: Value
    doc: str
    unit: str = ""
    at_least: int | None = None
    at_most: int | None = None
    choices: tuple[str, ...] = ()
    rule: Callable[[Any], str | None] | None = None
    secret: bool = False
    default_text: str = ""

    @property
    def variable(self) -> str:
        """The environment variable that sets this key."""
        return ENVIRONMENT_PREFIX + self.key.replace(".", "_").upper()

    @property
    def bounds(self) -> str:
        """The allowed values in words; empty where the type is the only bound."""
        if self.choices:
            return " or ".join(self.choices)
        if self.at_least is None:
            return ""
        return f"{self.at_least} to {self.at_most}" if self.at_most is not None else f"at least {self.at_least}"

    def wrong(self, value: Value) -> str | None:
        """Message for an invalid *value*, such as "must be at least 1"; None for a valid one."""
        if isinstance(value, str) and CONTROL_CHARACTERS.search(value):
            return "must be text without control characters"
        if self.choices and value not in self.choices:
            return f"must be {self.bounds}"
        if isinstance(value, int | float) and not self._in_range(value):
            return f"must be {self.bounds} {self.unit}".rstrip()
        return self.rule(value) if self.rule else None

    def _in_range(self, value: float) -> bool:
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)


def _power_of_two(value: int) -> str | None:
    return None if value.bit_count() == 1 else "must be a power of two, so that it divides the bucket's vbuckets"


def _name(value: str) -> str | None:
    if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", value):
        return None
    return "must be 1 to 64 letters, digits, dots, underscores or hyphens"


def _zone(value: str) -> str | None:
    return _name(value) if value else None


_SEED = r"(\[[0-9A-Fa-f:.]+\]|[^\[\]/@?#,:\s]+)(:[0-9]+)?"


def _source_url(value: str) -> str | None:
    if re.fullmatch(rf"couchbases?://{_SEED}(,{_SEED})*/[^/?#\s]+(\?[^#\s]*)?", value):
        return None
    return (
        "must look like couchbase://host:port/bucket, more hosts behind commas; user and password have their own keys"
    )


def _collections(value: str) -> str | None:
    names = value.split(",") if value else []
    if not all(re.fullmatch(r"[A-Za-z0-9_%-]+\.([A-Za-z0-9_%-]+|\*)", name) for name in names):
        return "must be names scope.collection, with commas between them, or scope.*"
    return "scope.* must stand alone" if len(names) > 1 and "*" in value else None


def _redis_url(value: str) -> str | None:
    try:
        parse_redis_url(value)
    except ValueError as error:
        return str(error)
    return None


def _couchbase_store_url(value: str) -> bool:
    return bool(re.fullmatch(r"couchbases?://[^@/?#\s]+/[^@/?#\s]+(\?[^#\s]*)?", value))


def _keyspace(value: str) -> str | None:
    if value == "_default" or re.fullmatch(r"[A-Za-z0-9-][A-Za-z0-9_%-]{0,250}", value):
        return None
    return "must be _default, or letters, digits, underscores, percent signs and hyphens"


def _store_url(value: str) -> str | None:
    if value == MEMORY_URL or _couchbase_store_url(value) or _redis_url(value) is None:
        return None
    if value.startswith(("couchbase:", "couchbases:")):
        return "must look like couchbase://host,host/bucket; user and password have their own keys"
    return f"must be {FORMS}, couchbase://host/bucket, couchbases://host/bucket or memory://"


def _listen(value: str) -> str | None:
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]/@?#,:\s]+):([0-9]{1,5})", value)
    if not value or (match and int(match[2]) < 65536):
        return None
    return "must look like 127.0.0.1:9480 or [::1]:9480"


def _decoder(value: str) -> str | None:
    if value == "sync_gateway" or re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", value):
        return None
    return "must be sync_gateway or package.module:factory"


def _setting(default: Value, doc: str, *, holds_secret: bool = False, **rest: Any) -> Any:
    """Make a dataclass field that carries its `Setting`. A field that may hold a secret is left out of the repr."""
    return field(default=default, repr=not holds_secret, metadata={"doc": doc, **rest})


@dataclass(frozen=True)
class NodeSettings:
    """The node's identity."""

    name: str = _setting(
        "", "Name of this node in leases, logs and status; one per machine.", rule=_name, default_text="the host's name"
    )
    run_dir: str = _setting(
        "/run/channelindex", "Folder for the node's runtime files. It should survive a restart of the node."
    )
    weight: int = _setting(
        1, "This node's share of the partitions, relative to the weights of the others.", at_least=1, at_most=1000
    )
    zone: str = _setting("", "Rack or availability zone of this node; shown by `channelindex nodes`.", rule=_zone)


@dataclass(frozen=True)
class SourceSettings:
    """The bucket whose changes are indexed."""

    url: str = _setting(
        "",
        "The bucket: couchbase://host,host:port/bucket, with some of the cluster's data nodes (port 11210 unless "
        "given), or one name of SRV records; couchbases:// for TLS (11207); ?network=external for the nodes' alternate "
        "addresses.",
        rule=_source_url,
    )
    user: str = _setting("", "User name at the bucket.")
    password: str = _setting("", "Password at the bucket.", secret=True, holds_secret=True)
    password_file: str = _setting(
        "",
        "File whose first line is the password; not together with source.password. Without both, systemd's credential "
        "source.password is used, if there is one.",
    )
    tls_ca_file: str = _setting(
        "", "Certificates (PEM) of the authorities that may sign the nodes'.", default_text="the system's"
    )
    tls_cert_file: str = _setting("", "Our own certificate (PEM), for a cluster that asks for one.")
    tls_key_file: str = _setting("", "Its key (PEM), not encrypted.", default_text="in source.tls_cert_file")
    tls_verify_host: bool = _setting(True, "Check that a node's certificate names the host that we connect to.")
    collections: str = _setting(
        "",
        "Collections to index: scope.collection, several with commas, or scope.*. With more than one, documents have "
        "ids scope.collection/id.",
        rule=_collections,
        default_text="the default collection",
    )
    metadata: str = _setting(
        "auto",
        "Place of Sync Gateway's metadata. With xattr no bodies are streamed; auto streams none until a document may "
        "need its body.",
        choices=("auto", "inline", "xattr"),
    )
    compression: bool = _setting(True, "Accept compressed values (Snappy) from the bucket.")
    rollback_mitigation: bool = _setting(
        False, "Index a change only once all replicas have it on disk, so that no failover takes it back."
    )
    decoder: str = _setting(
        "sync_gateway",
        "Decoder that finds a document's channels: sync_gateway or package.module:factory.",
        rule=_decoder,
    )
    star_channel: bool = _setting(True, "Index every document in the channel `*`, too.")
    allow_plain: bool = _setting(False, "Allow the password in clear text without TLS where a server offers no SCRAM.")


@dataclass(frozen=True)
class IndexSettings:
    """The index that is written and read."""

    name: str = _setting("channels", "Name of the index: a store can hold several.", rule=_name)
    store: str = _setting(
        "",
        "URL of the index store: redis://host:port/db, rediss://…, unix:///path/redis.sock, couchbase://host/bucket, "
        "couchbases://… or memory://.",
        rule=_store_url,
        holds_secret=True,
    )
    partitions: int = _setting(
        64,
        "Number of partitions, the units of ownership. Fixed when the index is created; a power of two.",
        at_least=1,
        at_most=1024,
        rule=_power_of_two,
    )
    block_bytes: int = _setting(
        65536,
        "Size at which a channel's block is full and a new one begins.",
        unit="bytes",
        at_least=1024,
        at_most=2**24,
    )
    allow_eviction: bool = _setting(
        False,
        "Accept a Redis store whose maxmemory-policy evicts keys. When its memory is full, channels are lost: an error "
        "to whoever reads or writes them, until they are repaired.",
    )
    memory_max_entries: int = _setting(
        500,
        "Newest entries of a channel that a memory:// store retains; 0 for all.",
        unit="entries",
        at_least=0,
        at_most=10**9,
    )
    memory_max_age_s: float = _setting(
        60.0,
        "Age up to which a memory:// store retains entries beyond index.memory_min_entries; 0 for no limit.",
        unit="seconds",
        at_least=0,
        at_most=10**9,
    )
    memory_min_entries: int = _setting(
        50,
        "Newest entries of a channel that a memory:// store retains whatever their age.",
        unit="entries",
        at_least=0,
        at_most=10**9,
    )
    user: str = _setting("", "User name at the bucket of a couchbase:// store.")
    password: str = _setting("", "Password at the bucket of a couchbase:// store.", secret=True, holds_secret=True)
    password_file: str = _setting("", "File whose first line is the password; not together with index.password.")
    ca_file: str = _setting(
        "",
        "Certificates (PEM) of the authorities that may sign those of a store with TLS, couchbases:// or rediss://.",
        default_text="the system's",
    )
    scope: str = _setting("_default", "Scope of the index in a couchbase:// store.", rule=_keyspace)
    collection: str = _setting("_default", "Collection of the index in a couchbase:// store.", rule=_keyspace)
    durability: str = _setting(
        "majority",
        "Durability of writes to a couchbase:// store. With none, a failover can lose entries for good.",
        choices=("none", "majority", "majority_and_persist_to_active", "persist_to_majority"),
    )
    timeout_s: float = _setting(
        5.0,
        "Longest wait for an operation of a couchbase:// store; workers.heartbeat_timeout_s must be four times that.",
        unit="seconds",
        at_least=1,
        at_most=60,
    )


@dataclass(frozen=True)
class CompactionSettings:
    """Entries that leave the index, and when."""

    min_lag_s: float = _setting(
        3600.0,
        "A superseded entry leaves when the newer one has been stable for so long. Readers must not hold a view of the "
        "index for longer.",
        unit="seconds",
        at_least=1,
        at_most=10**7,
    )
    dead_retention_s: float = _setting(
        86400.0,
        "What a rollback took back leaves after so long.",
        unit="seconds",
        at_least=1,
        at_most=10**7,
    )
    removal_retention_s: float = _setting(
        0.0,
        "Removals and deletions leave after so long, and older tokens are refused; 0: never.",
        unit="seconds",
        at_least=0,
        at_most=8 * 10**6,
    )
    max_lag_s: float = _setting(
        7 * 86400.0,
        "A channel of which anything may leave is compacted after so long, however little it is.",
        unit="seconds",
        at_least=60,
        at_most=10**8,
    )
    grace_s: float = _setting(
        60.0,
        "Blocks that were compacted stay for so long, for those who are reading them.",
        unit="seconds",
        at_least=0,
        at_most=86400,
    )
    cpu_share: float = _setting(0.25, "Share of a core that a node's compactor may take.", at_least=0.01, at_most=1.0)
    interval_s: float = _setting(
        600.0,
        "Pause between two looks at the directories of all channels; each reads some KB per channel.",
        unit="seconds",
        at_least=0.1,
        at_most=86400,
    )


@dataclass(frozen=True)
class CoordinationSettings:
    """The Redis in which the nodes share out the partitions."""

    redis: str = _setting(
        "",
        "URL of the Redis that holds the leases.",
        rule=_redis_url,
        holds_secret=True,
        default_text="index.store",
    )
    ca_file: str = _setting(
        "",
        "Certificates (PEM) of the authorities that may sign those of a coordination.redis with TLS.",
        default_text="index.ca_file where the Redis is that of index.store, else the system's",
    )
    ttl_s: float = _setting(
        10.0,
        "Lease duration. After a crash, a node's partitions are not indexed for up to this long.",
        unit="seconds",
        at_least=1,
        at_most=600,
    )
    grace_s: float = _setting(
        600.0,
        "A node that returns within this time gets its former partitions back.",
        unit="seconds",
        at_least=0,
        at_most=86400,
    )
    moves: int = _setting(
        8,
        "Partitions that this node hands over at once while it continues with the others.",
        unit="partitions",
        at_least=1,
        at_most=1024,
    )


@dataclass(frozen=True)
class WorkerSettings:
    """The processes of one node and their limits."""

    feed_workers: int = _setting(2, "Processes that stream and decode.", unit="processes", at_least=1, at_most=64)
    batch_writers: int = _setting(
        2, "Processes that write to the index store.", unit="processes", at_least=1, at_most=64
    )
    compactors: int = _setting(
        1,
        "Processes that compact the index, beside those of the other nodes; 0: none on this node.",
        unit="processes",
        at_least=0,
        at_most=1,
    )
    ring_bytes: int = _setting(
        4 * 2**20,
        "Size of the ring between one feed worker and one batch writer.",
        unit="bytes",
        at_least=2**18,
        at_most=2**30,
    )
    batch_bytes: int = _setting(
        2**20,
        "Size of a batch that a batch writer takes from its rings; up to four times as much while it is behind, each "
        "channel gets little of it, and the store takes it quickly.",
        unit="bytes",
        at_least=2**12,
        at_most=2**28,
    )
    heartbeat_timeout_s: float = _setting(
        30.0,
        "A worker that has stalled for this long is killed and replaced.",
        unit="seconds",
        at_least=6,  # more than a worker waits for one reply of Redis: redis/endpoints.py, SOCKET_TIMEOUT_S
        at_most=3600,
    )
    kernel: str = _setting(
        "auto",
        "Whether feed workers use the compiled kernel, if it was built. Python does the same, with more CPU.",
        choices=("auto", "off"),
    )
    drain_timeout_s: float = _setting(
        20.0,
        "Time for a stopping node to write what it has read. Keep the unit's TimeoutStopSec above it.",
        unit="seconds",
        at_least=0,
        at_most=600,
    )


@dataclass(frozen=True)
class MetricsSettings:
    """The HTTP endpoint of the node: /metrics for Prometheus, /healthz, /readyz. It has no passwords and no TLS."""

    listen: str = _setting(
        "",
        "Address to listen on, such as 127.0.0.1:9480 or [::1]:9480; empty: no endpoint. Several nodes on a machine "
        "need a port each.",
        rule=_listen,
    )
    ready_lag_s: float = _setting(
        30.0,
        "A node with a partition that lags by more than this is not ready.",
        unit="seconds",
        at_least=1,
        at_most=86400,
    )
    ready_quarantined: int = _setting(
        100,
        "A node whose workers have put more documents into quarantine since they started is not ready: a decoder that "
        "does not understand the bucket would otherwise be rolled out everywhere. 0: quarantine does not matter.",
        unit="documents",
        at_least=0,
        at_most=10**9,
    )


def _origins(value: str) -> str | None:
    if all(re.fullmatch(r"https?://[^/,\s]+", origin) for origin in value.split(",") if value):
        return None
    return "must be origins such as https://app.example.com, with commas between them"


def _db_name(value: str) -> str | None:
    return _name(value) if value else None


@dataclass(frozen=True)
class ServeSettings:
    """The changes feed over HTTP: `channelindex serve`. Nodes do not use these."""

    listen: str = _setting("127.0.0.1:4994", "Address to serve clients on.", rule=_listen)
    operator_listen: str = _setting(
        "",
        "Address for operators: /_up and /metrics, and on loopback all else too, without a token. Without it, and "
        "without serve.tokens_file, serve.listen has them.",
        rule=_listen,
    )
    db: str = _setting("", "Name of the database in paths.", rule=_db_name, default_text="index.name")
    tokens_file: str = _setting(
        "",
        "File of tokens and what each may read, made by `channelindex token`; read again when it changes. Without it "
        "everybody may read everything, so the service then listens on loopback alone.",
    )
    tls_cert_file: str = _setting("", "Certificate of the service (PEM), with those that lead to its authority.")
    tls_key_file: str = _setting("", "Its key (PEM), not encrypted.", default_text="in serve.tls_cert_file")
    tls_client_ca_file: str = _setting(
        "",
        "Certificates (PEM) of the authorities of clients; with it a client must have a certificate, beside a token.",
    )
    origins: str = _setting(
        "", "Origins whose scripts may use the service in browsers (CORS), with commas between them.", rule=_origins
    )
    max_connections: int = _setting(
        20_000, "Connections of clients.", unit="connections", at_least=1, at_most=1_000_000
    )
    max_feeds_per_token: int = _setting(
        1000, "Requests for changes of one token that are open at once.", unit="feeds", at_least=1, at_most=1_000_000
    )
    max_channels: int = _setting(1000, "Channels of one request.", unit="channels", at_least=1, at_most=100_000)
    scans: int = _setting(8, "Reads of the index at once; some 200 more wait.", unit="reads", at_least=1, at_most=64)
    slow_client_s: float = _setting(
        30.0,
        "Time for a client to send a request, and to read 64 KiB of an answer, before it is cut off.",
        unit="seconds",
        at_least=1,
        at_most=3600,
    )
    stop_timeout_s: float = _setting(
        10.0, "Time for answers to end when the service stops.", unit="seconds", at_least=0, at_most=600
    )


@dataclass(frozen=True)
class LogSettings:
    """Level and format of log lines."""

    level: str = _setting("info", "Lowest level to log.", choices=("debug", "info", "warning", "error"))
    format: str = _setting("logfmt", "Format of a log line: key=value pairs or JSON.", choices=("logfmt", "json"))


@dataclass(frozen=True)
class Config:
    """The whole configuration, validated. `origins` says where each key's value was set, `warnings` what was ignored.

    `source.password` and `index.password` are those in force, whichever key they came by; `coordination.redis` is
    never empty where the store is a Redis.
    """

    node: NodeSettings = field(default_factory=NodeSettings)
    source: SourceSettings = field(default_factory=SourceSettings)
    index: IndexSettings = field(default_factory=IndexSettings)
    compaction: CompactionSettings = field(default_factory=CompactionSettings)
    coordination: CoordinationSettings = field(default_factory=CoordinationSettings)
    workers: WorkerSettings = field(default_factory=WorkerSettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    serve: ServeSettings = field(default_factory=ServeSettings)
    log: LogSettings = field(default_factory=LogSettings)
    origins: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    warnings: tuple[str, ...] = field(default=(), repr=False, compare=False)


SECTIONS: Mapping[str, type["DataclassInstance"]] = {
    "node": NodeSettings,
    "source": SourceSettings,
    "index": IndexSettings,
    "compaction": CompactionSettings,
    "coordination": CoordinationSettings,
    "workers": WorkerSettings,
    "metrics": MetricsSettings,
    "serve": ServeSettings,
    "log": LogSettings,
}
"""The sections of the configuration, in the order of `Config`."""

SETTINGS: Mapping[str, Setting] = {
    f"{section}.{entry.name}": Setting(f"{section}.{entry.name}", cast("Value", entry.default), **entry.metadata)
    for section, kind in SECTIONS.items()
    for entry in dataclasses.fields(kind)
}
"""Every key of the configuration, in the order of the model."""
